"""What route rag asks of documents.Documents, held against Postgres and against the double: search, corpus, deletion."""

import asyncio
import time
from dataclasses import dataclass, replace

import pytest

from serve_app.documents import NO_CORPUS, Chunk, Documents
from serve_app.events import ChoiceEnd, RagReport, Usage
from serve_app.ports import AnswerCache, RunStore
from serve_app.runs import Answer, Outcome, Question, Run, RunStatus, new_trace_id
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.documents import PostgresDocuments
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore
from serve_app.store.memory_documents import InMemoryDocuments
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import run_of

WAY = "model/2/10-0/v1"
REPORT = RagReport(relevant=True, used=1)


@dataclass
class Stores:
    documents: Documents
    runs: RunStore
    cache: AnswerCache

    async def teach(self, project: str, path: str, *texts: str, vector: tuple[float, ...] = (0.6, 0.8)) -> str:
        """A document with one chunk per text; its id."""
        await self.documents.put(project, "/a", path, "\n".join(texts))
        entry = await self.documents.entry_at(project, "/a", path, made_with=WAY)
        assert entry is not None
        document = await self.documents.find(project, entry.document_id)
        assert document is not None
        assert await self.documents.replace_chunks(document, [chunk(text, vector) for text in texts], made_with=WAY)
        return entry.document_id

    async def answer(self, project: str, *, key: str | None = None, text: str = "q") -> Run:
        """A run of route rag that is claimed now, against the corpus as it stands; not settled yet."""
        question = Question(
            project=project,
            route="rag",
            model="m",
            adapter=None,
            messages=[{"role": "user", "content": text}],
            rag={"top_k": 4},
            corpus=await self.documents.corpus(project),
        )
        run = replace(run_of(question, key=key), embedding=[0.6, 0.8])
        assert (await self.runs.claim(run, lease_s=60)).claimed
        return run

    async def settle(self, run: Run) -> None:
        message = {"role": "assistant", "content": "yes"}
        answer = Answer("m", (message,), (ChoiceEnd(finish_reason="stop"),), Usage(), rag=REPORT)
        assert await self.runs.settle(run, Outcome(RunStatus.SUCCEEDED, "stop", Usage(), answer=answer))

    async def is_cached(self, run: Run) -> bool:
        exact = await self.cache.exact(run.req_id)
        near = await self.cache.nearest(run.question.scope, [0.6, 0.8], threshold=0.9)
        assert (exact is None) == (not near)
        assert exact is None or exact.answer.rag == REPORT
        return exact is not None


@pytest.fixture(params=["postgres", "memory"])
def stores(request: pytest.FixtureRequest) -> Stores:
    if request.param == "memory":
        cache = InMemoryAnswerCache()
        return Stores(InMemoryDocuments(cache), InMemoryRunStore(cache), cache)
    pool: PostgresPool = request.getfixturevalue("postgres_pool")
    return Stores(PostgresDocuments(pool), PostgresRunStore(pool), PostgresAnswerCache(pool))


def chunk(text: str, vector: tuple[float, ...] = (0.6, 0.8)) -> Chunk:
    return Chunk(text, 0, len(text), len(text.split()), vector)


async def test_a_search_finds_by_meaning_and_by_words(stores: Stores) -> None:
    near = await stores.teach("p", "near.txt", "Boats sail.", vector=(1.0, 0.0))
    far = await stores.teach("p", "far.txt", "The valve QX-7731 leaks.", vector=(0.0, 1.0))
    hits = {hit.document_id: hit for hit in await stores.documents.search("p", "valve QX-7731", (1.0, 0.0), limit=5)}
    assert (hits[near].meaning_rank, hits[near].words_rank, hits[near].coverage) == (1, None, 0)
    assert hits[near].similarity == pytest.approx(1, abs=0.01)
    assert (hits[far].meaning_rank, hits[far].words_rank, hits[far].coverage) == (2, 1, 1)
    assert hits[far].similarity == pytest.approx(0, abs=0.01)
    assert (hits[far].source_path, hits[far].ordinal, hits[far].content) == ("far.txt", 0, "The valve QX-7731 leaks.")


async def test_a_search_gives_at_most_so_many_of_each_way(stores: Stores) -> None:
    await stores.teach("p", "a.txt", *(f"Sentence number {n}." for n in range(6)), vector=(1.0, 0.0))
    await stores.teach("p", "b.txt", *(f"The valve {n} leaks." for n in range(6)), vector=(0.0, 1.0))
    hits = await stores.documents.search("p", "valve", (1.0, 0.0), limit=3)
    assert len(hits) == 6
    assert sorted(hit.meaning_rank for hit in hits if hit.meaning_rank) == [1, 2, 3]
    assert sorted(hit.words_rank for hit in hits if hit.words_rank) == [1, 2, 3]


@pytest.mark.parametrize("question", ["", "the of and", "!&|():*'\\ <-> -x", "x\x00y", "😀" * 50, "a" * 2000])
async def test_any_text_can_be_searched_for(stores: Stores, question: str) -> None:
    await stores.teach("p", "a.txt", "One.")
    [hit] = await stores.documents.search("p", question, (0.6, 0.8), limit=3)
    assert hit.meaning_rank == 1


async def test_a_vector_of_another_length_is_not_near_but_its_words_are_found(stores: Stores) -> None:
    await stores.teach("p", "a.txt", "The valve leaks.", vector=(1.0, 0.0, 0.0))
    [hit] = await stores.documents.search("p", "valve", (1.0, 0.0), limit=3)
    assert (hit.meaning_rank, hit.words_rank) == (None, 1)


async def test_a_project_finds_its_own_alone(stores: Stores) -> None:
    await stores.teach("p", "a.txt", "The valve leaks.")
    assert await stores.documents.search("q", "valve", (0.6, 0.8), limit=3) == []
    assert await stores.documents.corpus("q") == NO_CORPUS


async def test_the_corpus_is_another_one_after_every_change(stores: Stores) -> None:
    seen = [await stores.documents.corpus("p")]
    assert seen == [NO_CORPUS]
    document_id = await stores.teach("p", "a.txt", "One.")
    seen.append(await stores.documents.corpus("p"))
    await stores.documents.put("p", "/a", "a.txt", "One.")
    await stores.documents.put("p", "/a", "b.txt", "Waits to be chunked.")
    assert await stores.documents.corpus("p") == seen[-1], "no chunk has changed"
    await stores.teach("p", "a.txt", "Two.")
    seen.append(await stores.documents.corpus("p"))
    assert await stores.documents.remove("p", "/a", ["unknown.txt"]) == 0
    assert await stores.documents.corpus("p") == seen[-1]
    await stores.documents.remove("p", "/a", ["b.txt"])
    seen.append(await stores.documents.corpus("p"))
    assert await stores.documents.delete("p", document_id)
    seen.append(await stores.documents.corpus("p"))
    assert len(set(seen)) == 5


async def test_a_document_is_deleted_with_its_chunks_by_its_own_project_alone(stores: Stores) -> None:
    document_id = await stores.teach("p", "a.txt", "The valve leaks.")
    assert not await stores.documents.delete("q", document_id)
    assert not await stores.documents.delete("p", "nonsense")
    assert await stores.documents.delete("p", document_id)
    assert not await stores.documents.delete("p", document_id)
    assert await stores.documents.search("p", "valve", (0.6, 0.8), limit=3) == []


async def test_documents_are_listed_in_pages(stores: Stores) -> None:
    ids = [await stores.teach("p", f"{n}.txt", "One.") for n in range(5)]
    await stores.teach("q", "x.txt", "One.")
    await stores.documents.put("p", "/a", "4.txt", "Änderung.")
    first = await stores.documents.entries("p", after=None, limit=3, made_with=WAY)
    rest = await stores.documents.entries("p", after=first[-1].document_id, limit=3, made_with=WAY)
    assert [entry.document_id for entry in first + rest] == ids
    assert [entry.ready for entry in rest] == [True, False]
    assert (rest[-1].source, rest[-1].source_path, rest[-1].size) == ("/a", "4.txt", 10)
    assert rest[-1].updated_at >= rest[-1].created_at
    assert await stores.documents.entries("p", after="nonsense", limit=3, made_with=WAY) == []
    assert await stores.documents.entry("q", ids[0], made_with=WAY) is None
    assert await stores.documents.entry("p", "nonsense", made_with=WAY) is None
    chunked_otherwise = await stores.documents.entry("p", ids[0], made_with="other")
    assert chunked_otherwise is not None
    assert not chunked_otherwise.ready


async def test_projects_with_stale_documents_are_named_and_their_contents_told_apart(stores: Stores) -> None:
    await stores.teach("p", "a.txt", "One.")
    assert await stores.documents.stale_projects(made_with=WAY, limit=5) == {}
    await stores.documents.put("p", "/a", "b.txt", "Two.")
    await stores.documents.put("q", "/a", "b.txt", "Two.")
    waiting = await stores.documents.stale_projects(made_with=WAY, limit=5)
    assert set(waiting) == {"p", "q"}
    assert await stores.documents.stale_projects(made_with=WAY, limit=5) == waiting
    await stores.documents.put("p", "/a", "b.txt", "Three.")
    assert (await stores.documents.stale_projects(made_with=WAY, limit=5))["p"] != waiting["p"]
    assert len(await stores.documents.stale_projects(made_with=WAY, limit=1)) == 1


@pytest.mark.parametrize("change", ["delete", "remove", "replace"])
async def test_what_was_cached_from_documents_goes_when_they_change(stores: Stores, change: str) -> None:
    document_id = await stores.teach("p", "a.txt", "One.")
    await stores.teach("q", "a.txt", "One.")
    ours, theirs = await stores.answer("p"), await stores.answer("q")
    await stores.settle(ours)
    await stores.settle(theirs)
    assert await stores.is_cached(ours)
    if change == "delete":
        await stores.documents.delete("p", document_id)
    elif change == "remove":
        await stores.documents.remove("p", "/a", ["a.txt"])
    else:
        await stores.teach("p", "a.txt", "Two.")
    assert not await stores.is_cached(ours)
    assert await stores.is_cached(theirs), "another project's answers stay"


async def test_an_answer_that_comes_after_its_documents_went_is_not_cached(stores: Stores) -> None:
    document_id = await stores.teach("p", "a.txt", "One.")
    late = await stores.answer("p")
    await stores.documents.delete("p", document_id)
    await stores.settle(late)
    assert not await stores.is_cached(late)
    found = await stores.runs.find(late.trace_id)
    assert found is not None
    assert found.answer is not None, "its own caller gets it all the same"


async def test_an_answer_without_any_documents_is_cached(stores: Stores) -> None:
    run = await stores.answer("p")
    await stores.settle(run)
    assert await stores.is_cached(run)


async def test_a_key_goes_on_to_mean_its_body_when_documents_change(stores: Stores) -> None:
    await stores.teach("p", "a.txt", "One.")
    first = await stores.answer("p", key="k")
    await stores.settle(first)
    await stores.teach("p", "a.txt", "Two.")
    changed = replace(first.question, corpus=await stores.documents.corpus("p"))
    again = Run(new_trace_id(), changed.req_id, "k", True, changed, time.time() + 60)
    claim = await stores.runs.claim(again, lease_s=60)
    assert not claim.claimed
    assert (claim.record.trace_id, claim.record.req_id) == (first.trace_id, again.claim_id)
    assert first.req_id != again.req_id


async def test_settling_and_deleting_at_once_leave_nothing_behind(postgres_pool: PostgresPool) -> None:
    stores = Stores(PostgresDocuments(postgres_pool), PostgresRunStore(postgres_pool), PostgresAnswerCache(postgres_pool))
    for round_ in range(10):
        document_id = await stores.teach("p", "a.txt", f"Round {round_}.")
        runs = [await stores.answer("p", text=f"{round_} {n}") for n in range(4)]
        await asyncio.gather(stores.documents.delete("p", document_id), *(stores.settle(run) for run in runs))
        assert [await stores.is_cached(run) for run in runs] == [False] * 4
