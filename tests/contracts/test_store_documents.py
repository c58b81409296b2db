"""The contract of documents.Documents, held against Postgres and against the double."""

import asyncio

import asyncpg
import pytest

from serve_app.documents import Change, Chunk, Document, Documents, content_hash
from serve_app.errors import Unavailable
from serve_app.store.documents import PostgresDocuments
from serve_app.store.memory_documents import InMemoryDocuments
from serve_app.store.pool import PostgresPool

WAY = "model/2/10-0/v1"


@pytest.fixture(params=["postgres", "memory"])
def documents(request: pytest.FixtureRequest) -> Documents:
    """Each store that obeys the contract, in turn."""
    if request.param == "memory":
        return InMemoryDocuments()
    return PostgresDocuments(request.getfixturevalue("postgres_pool"))


def a_chunk(content: str = "One.", vector: tuple[float, ...] = (0.6, 0.8)) -> Chunk:
    return Chunk(content, 0, len(content), 2, vector)


async def only(documents: Documents, project: str) -> Document:
    """The one stale document of the project."""
    [document_id] = await documents.stale(project, made_with=WAY, limit=10)
    found = await documents.find(project, document_id)
    assert found is not None
    return found


async def counts(documents: Documents, project: str, dimensions: int = 2) -> tuple[int, int, int, int, int]:
    a = await documents.audit(project, made_with=WAY, dimensions=dimensions)
    return a.documents, a.chunks, a.stale, a.orphans, a.misfits


async def test_a_document_is_added_changed_and_left_alone(documents: Documents) -> None:
    assert await documents.put("p", "/a", "x.txt", "one") is Change.ADDED
    assert await documents.put("p", "/a", "x.txt", "one") is Change.UNCHANGED
    first = await only(documents, "p")
    assert await documents.put("p", "/a", "x.txt", "two ☃") is Change.CHANGED
    assert await documents.known("p", "/a") == {"x.txt": content_hash("two ☃")}
    assert await only(documents, "p") == Document(first.document_id, "p", "/a", "x.txt", "two ☃", content_hash("two ☃")), (
        "it keeps its id"
    )


async def test_the_same_path_elsewhere_is_another_document(documents: Documents) -> None:
    for project, source in (("p", "/a"), ("p", "/b"), ("q", "/a")):
        assert await documents.put(project, source, "x.txt", "one") is Change.ADDED
    assert await documents.remove("p", "/a", ["x.txt", "unknown.txt"]) == 1
    assert [len(await documents.known(*place)) for place in (("p", "/a"), ("p", "/b"), ("q", "/a"))] == [0, 1, 1]


async def test_a_project_sees_its_own_alone(documents: Documents) -> None:
    await documents.put("p", "/a", "x.txt", "one")
    theirs = await only(documents, "p")
    assert await documents.find("q", theirs.document_id) is None
    assert await documents.known("q", "/a") == {}
    assert await documents.stale("q", made_with=WAY, limit=10) == []
    assert await documents.remove("q", "/a", ["x.txt"]) == 0
    forged = Document(theirs.document_id, "q", "/a", "x.txt", "one", theirs.content_hash)
    assert not await documents.replace_chunks(forged, [a_chunk()], made_with=WAY)
    assert await counts(documents, "p") == (1, 0, 1, 0, 0)


@pytest.mark.parametrize("document_id", ["", "nonsense", "00000000-0000-0000-0000-000000000000"])
async def test_an_unknown_document_is_not_found(documents: Documents, document_id: str) -> None:
    assert await documents.find("p", document_id) is None


async def test_chunks_are_replaced_and_go_with_their_document(documents: Documents) -> None:
    await documents.put("p", "/a", "x.txt", "one")
    document = await only(documents, "p")
    assert await documents.replace_chunks(document, [a_chunk(), a_chunk("Two.")], made_with=WAY)
    assert await counts(documents, "p") == (1, 2, 0, 0, 0)
    assert await documents.replace_chunks(document, [a_chunk("Three.")], made_with=WAY)
    assert await counts(documents, "p") == (1, 1, 0, 0, 0)
    assert await documents.remove("p", "/a", ["x.txt"]) == 1
    assert await counts(documents, "p") == (0, 0, 0, 0, 0)


async def test_a_document_is_stale_until_it_is_chunked_as_it_stands_and_in_the_wanted_way(documents: Documents) -> None:
    await documents.put("p", "/a", "x.txt", "one")
    document = await only(documents, "p")
    await documents.replace_chunks(document, [a_chunk()], made_with=WAY)
    assert await documents.stale("p", made_with=WAY, limit=10) == []
    assert await documents.stale("p", made_with="other", limit=10) == [document.document_id]
    await documents.put("p", "/a", "x.txt", "two")
    assert await counts(documents, "p") == (1, 1, 1, 0, 0), "the old chunks stay until there are new ones"
    await documents.put("p", "/a", "x.txt", "one")
    assert await documents.stale("p", made_with=WAY, limit=10) == [], "what it was chunked as, it is again"


async def test_an_empty_document_has_no_chunks_and_is_not_stale(documents: Documents) -> None:
    await documents.put("p", "/a", "x.txt", "")
    assert await documents.replace_chunks(await only(documents, "p"), [], made_with=WAY)
    assert await counts(documents, "p") == (1, 0, 0, 0, 0)


async def test_chunks_that_come_too_late_are_not_written(documents: Documents) -> None:
    await documents.put("p", "/a", "x.txt", "one")
    before = await only(documents, "p")
    await documents.replace_chunks(before, [a_chunk()], made_with=WAY)
    await documents.put("p", "/a", "x.txt", "two")
    assert not await documents.replace_chunks(before, [a_chunk("late"), a_chunk("late")], made_with=WAY)
    assert await counts(documents, "p") == (1, 1, 1, 0, 0)
    await documents.remove("p", "/a", ["x.txt"])
    assert not await documents.replace_chunks(before, [a_chunk()], made_with=WAY)


async def test_the_audit_counts_vectors_of_another_length(documents: Documents) -> None:
    await documents.put("p", "/a", "x.txt", "one")
    await documents.replace_chunks(await only(documents, "p"), [a_chunk(), a_chunk(vector=(1, 0, 0))], made_with=WAY)
    assert await counts(documents, "p") == (1, 2, 0, 0, 1)
    assert await counts(documents, "p", dimensions=3) == (1, 2, 0, 0, 1)


async def test_stale_documents_are_listed_up_to_a_limit(documents: Documents) -> None:
    for number in range(5):
        await documents.put("p", "/a", f"{number}.txt", "one")
    assert len(await documents.stale("p", made_with=WAY, limit=3)) == 3


@pytest.mark.parametrize(("project", "content"), [("a b", "one"), ("p", "bin\x00ary")])
async def test_what_cannot_be_a_document_is_refused(documents: Documents, project: str, content: str) -> None:
    with pytest.raises(ValueError, match="cannot"):
        await documents.put(project, "/a", "x.txt", content)


async def test_many_at_once_put_one_document(documents: Documents) -> None:
    changes = await asyncio.gather(*(documents.put("p", "/a", "x.txt", "one") for _ in range(8)))
    assert sorted(changes) == ["added", *["unchanged"] * 7]


async def test_a_failed_replacement_leaves_the_old_chunks(postgres_pool: PostgresPool) -> None:
    documents = PostgresDocuments(postgres_pool)
    await documents.put("p", "/a", "x.txt", "one")
    document = await only(documents, "p")
    await documents.replace_chunks(document, [a_chunk("Old.")] * 2, made_with=WAY)
    broken = Chunk("Bad.", 5, 5, 1, (1.0, 0.0))
    with pytest.raises(asyncpg.CheckViolationError):
        await documents.replace_chunks(document, [a_chunk("New.")] * 700 + [broken], made_with=WAY)
    async with postgres_pool.connection() as connection:
        rows = await connection.fetch("SELECT ordinal, content FROM chunks ORDER BY ordinal")
    assert [tuple(row) for row in rows] == [(0, "Old."), (1, "Old.")]


async def test_a_chunk_cannot_belong_to_another_project(postgres_pool: PostgresPool) -> None:
    documents = PostgresDocuments(postgres_pool)
    await documents.put("p", "/a", "x.txt", "one")
    await documents.put("q", "/a", "x.txt", "one")
    await documents.replace_chunks(await only(documents, "p"), [a_chunk()], made_with=WAY)
    async with postgres_pool.connection() as connection:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await connection.execute("UPDATE chunks SET project = 'q'")


async def test_a_database_that_is_away_is_unavailable() -> None:
    pool = PostgresPool("postgresql://somebody@127.0.0.1:1/x", timeout_s=1)
    documents = PostgresDocuments(pool)
    with pytest.raises(Unavailable):
        await documents.known("p", "/a")
    with pytest.raises(Unavailable):
        await documents.put("p", "/a", "x.txt", "one")
    await pool.close()
