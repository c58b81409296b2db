"""The jobs `ingest` and `cache_maintenance`, executed: real Dagster, real Postgres, the real embedding model."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult

from dagster_project.definitions import defs
from dagster_project.ingest import projects
from dagster_project.parts import STACK, StackParts
from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.settings import Settings


class CountingEmbedder:
    """The real embedder, and the texts that it was asked for."""

    def __init__(self, inner: OnnxEmbedder) -> None:
        self._inner = inner
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str], *, unit: bool = True) -> list[list[float]]:
        self.texts += texts
        return await self._inner.embed(texts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture(scope="module")
def model() -> Iterator[OnnxEmbedder]:
    made = load_embedder(Settings(config="simulated"))
    yield made
    made.close()


class Stand:
    """One database, one folder, and the jobs on them."""

    def __init__(self, instance: DagsterInstance, dsn: str, folder: Path, model: OnnxEmbedder, **settings: Any) -> None:
        self.folder = folder
        self.embedder = CountingEmbedder(model)
        self._instance = instance
        self._dsn = dsn
        chosen = Settings(config="simulated", postgres_dsn=dsn, chunk_tokens=16, chunk_overlap_tokens=4, **settings)
        self._stack = StackParts(chosen, self.embedder)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    async def ingest(self, project: str = "p", path: Path | None = None) -> "Ran":
        self._instance.add_dynamic_partitions(projects.name or "", [project])
        config = {"ops": {"documents": {"config": {"path": str(path or self.folder)}}}}
        return await asyncio.to_thread(self._execute, "ingest", partition_key=project, run_config=config)

    async def maintain(self) -> "Ran":
        return await asyncio.to_thread(self._execute, "cache_maintenance")

    def _execute(self, job: str, **how: Any) -> "Ran":
        self.embedder.texts.clear()
        done = defs.resolve_job_def(job).execute_in_process(
            instance=self._instance, resources={STACK: self._stack}, raise_on_error=False, **how
        )
        return Ran(done)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self._dsn)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()


class Ran:
    """What a run of a job told."""

    def __init__(self, done: ExecuteInProcessResult) -> None:
        self.success = done.success
        self.failures = [
            str(event.step_failure_data.user_failure_data.description if event.step_failure_data.user_failure_data else event)
            for event in done.all_events
            if event.is_step_failure
        ]
        self.checks = {e.check_name: e.passed for e in done.get_asset_check_evaluations()}
        self.partitions = {e.partition for e in done.get_asset_materialization_events()}
        self.told: dict[str, dict[str, Any]] = {
            e.asset_key.to_user_string(): {k: v.value for k, v in e.materialization.metadata.items()}
            for e in done.get_asset_materialization_events()
            if e.asset_key is not None
        }

    def counts(self) -> tuple[int, ...]:
        """added, changed, unchanged, removed, bad; documents chunked, chunks embedded."""
        documents, chunks = self.told["documents"], self.told["chunks"]
        names = ("added", "changed", "unchanged", "removed", "bad")
        return (*(documents[n] for n in names), chunks["documents_chunked"], chunks["chunks_embedded"])


@pytest.fixture
def stand(instance: DagsterInstance, postgres_dsn: str, tmp_path: Path, model: OnnxEmbedder) -> Stand:
    return Stand(instance, postgres_dsn, tmp_path / "texts", model, document_max_bytes=2000)


ALL_CHECKS = {
    "every_file_was_read",
    "as_many_documents_as_files",
    "every_chunk_has_an_embedding",
    "no_orphan_chunks",
    "no_stale_documents",
}
CHUNKS = "SELECT document_id, ordinal, created_at, content FROM chunks ORDER BY 1, 2"


async def test_a_folder_becomes_documents_and_chunks_once(stand: Stand, instance: DagsterInstance) -> None:
    stand.write("a.txt", "Paris is the capital of France. " * 5)
    stand.write("deep/b.MD", "# Cats\r\n\r\nCats sleep a lot.\r\n")
    stand.write("picture.png", b"\x89PNG")
    stand.write(".hidden/c.txt", "not seen")
    first = await stand.ingest()
    assert first.success
    assert first.checks == dict.fromkeys(ALL_CHECKS, True)
    assert first.partitions == {"p"}
    assert first.counts()[:6] == (2, 0, 0, 0, 0, 2)
    assert first.told["documents"]["skipped"] == 1
    embedded = list(stand.embedder.texts)
    assert len(embedded) == first.counts()[6] > 2
    before = await stand.rows(CHUNKS)
    assert sorted(row[3] for row in before) == sorted(embedded)
    assert await stand.rows("SELECT DISTINCT project, vector_dims(embedding) FROM chunks") == [("p", 384)]
    paths = await stand.rows("SELECT source_path, content FROM documents ORDER BY 1")
    assert [path for path, _ in paths] == ["a.txt", "deep/b.MD"]
    assert paths[1][1] == "# Cats\n\nCats sleep a lot.\n"

    second = await stand.ingest()
    assert second.success
    assert second.counts() == (0, 0, 2, 0, 0, 0, 0)
    assert stand.embedder.texts == [], "nothing is embedded again"
    assert await stand.rows(CHUNKS) == before, "nothing is written again"
    known = instance.get_latest_materialization_event(AssetKey("chunks"))
    assert known is not None, "the catalogue knows it"


async def test_only_a_changed_file_is_embedded_again_and_a_removed_one_goes(stand: Stand) -> None:
    stand.write("a.txt", "Alpha is the first letter.")
    stand.write("b.txt", "Beta is the second letter.")
    gone = stand.write("c.txt", "Gamma is the third letter.")
    await stand.ingest()
    alpha = await stand.rows("SELECT * FROM chunks WHERE content LIKE 'Alpha%'")
    stand.write("b.txt", "Beta was the second letter.")
    gone.unlink()
    ran = await stand.ingest()
    assert ran.counts() == (0, 1, 1, 1, 0, 1, 1)
    assert stand.embedder.texts == ["Beta was the second letter."]
    assert ran.checks == dict.fromkeys(ALL_CHECKS, True)
    assert await stand.rows("SELECT * FROM chunks WHERE content LIKE 'Alpha%'") == alpha
    assert [row[3] for row in await stand.rows(CHUNKS)] == ["Alpha is the first letter.", "Beta was the second letter."]


async def test_two_projects_are_apart(stand: Stand) -> None:
    file = stand.write("a.txt", "Shared words.")
    assert (await stand.ingest("blue")).counts()[0] == (await stand.ingest("green")).counts()[0] == 1
    file.write_text("Other words.")
    await stand.ingest("blue")
    found = await stand.rows("SELECT project, content FROM chunks ORDER BY 1")
    assert found == [("blue", "Other words."), ("green", "Shared words.")]
    file.unlink()
    stand.write("b.txt", "New words.")
    assert (await stand.ingest("green")).counts()[:4] == (1, 0, 0, 1)
    assert await stand.rows("SELECT project, content FROM chunks ORDER BY 1") == [
        ("blue", "Other words."),
        ("green", "New words."),
    ]


async def test_bad_files_are_told_of_and_do_not_stop_the_others(stand: Stand, tmp_path: Path) -> None:
    stand.write("good.txt", "Good words.")
    was_good = stand.write("was_good.txt", "It was good once.")
    await stand.ingest()
    was_good.write_bytes(b"\xff\xfe broken")
    stand.write("big.txt", "x" * 2001)
    stand.write("binary.txt", b"bin\x00ary")
    os.mkfifo(stand.folder / "pipe.txt")
    secret = tmp_path / "secret.txt"
    secret.write_text("not of this folder")
    (stand.folder / "link.txt").symlink_to(secret)
    (stand.folder / "nowhere.txt").symlink_to(tmp_path / "missing.txt")
    stand.write("new.txt", "New words.")
    ran = await stand.ingest()
    assert ran.success
    assert ran.counts()[:5] == (1, 0, 1, 0, 6)
    faults = ran.told["documents"]["faults"]
    assert {name: why.split(":")[0].split(" (")[0] for name, why in faults.items()} == {
        "was_good.txt": "not UTF-8",
        "big.txt": "larger than 2000 bytes",
        "binary.txt": "holds the character U+0000",
        "pipe.txt": "not a regular file",
        "link.txt": "a link that leads out of the folder",
        "nowhere.txt": "a link that leads out of the folder",
    }
    assert ran.checks == {**dict.fromkeys(ALL_CHECKS, True), "every_file_was_read": False}
    told = {row[0] for row in await stand.rows("SELECT content FROM chunks")}
    assert told == {"Good words.", "New words.", "It was good once."}, "what was stored before stays"


async def test_a_single_file_leaves_its_neighbours_alone(stand: Stand) -> None:
    stand.write("a.txt", "Alpha.")
    one = stand.write("b.txt", "Beta.")
    await stand.ingest()
    one.write_text("Beta again.")
    assert (await stand.ingest(path=one)).counts() == (0, 1, 0, 0, 0, 1, 1)
    assert len(await stand.rows("SELECT 1 FROM documents")) == 2
    assert (await stand.ingest()).counts() == (0, 0, 2, 0, 0, 0, 0), "the folder knows it as the same document"


async def test_a_folder_that_is_not_there_fails_and_removes_nothing(stand: Stand, tmp_path: Path) -> None:
    stand.write("a.txt", "Alpha.")
    await stand.ingest()
    stand.folder.rename(tmp_path / "moved")
    ran = await stand.ingest()
    assert not ran.success
    assert "does not exist on the machine that runs the job" in ran.failures[0]
    assert len(await stand.rows("SELECT 1 FROM chunks")) == 1


async def test_a_name_that_no_project_may_have_is_refused(stand: Stand) -> None:
    stand.write("a.txt", "Alpha.")
    ran = await stand.ingest("not a name")
    assert not ran.success
    assert "cannot name a project" in ran.failures[0]


async def test_an_emptied_file_has_no_chunks(stand: Stand) -> None:
    file = stand.write("a.txt", "Alpha.")
    await stand.ingest()
    file.write_text("")
    ran = await stand.ingest()
    assert ran.checks == dict.fromkeys(ALL_CHECKS, True)
    assert await stand.rows("SELECT 1 FROM chunks") == []


async def test_checks_see_chunks_that_do_not_fit(stand: Stand) -> None:
    stand.write("a.txt", "Alpha.")
    await stand.ingest()
    await stand.rows("UPDATE chunks SET embedding = '[1,0,0]'")
    ran = await stand.ingest()
    assert ran.success
    assert ran.checks == {**dict.fromkeys(ALL_CHECKS, True), "every_chunk_has_an_embedding": False}


async def test_a_job_that_ended_half_way_is_finished_by_the_next(stand: Stand) -> None:
    for number in range(3):
        stand.write(f"{number}.txt", f"Text number {number}.")
    whole = stand.embedder.embed

    async def dies_at_the_second(texts: Sequence[str], *, unit: bool = True) -> list[list[float]]:
        if stand.embedder.texts:
            raise KeyError("the process is gone")
        return await whole(texts)

    stand.embedder.embed = dies_at_the_second  # type: ignore[method-assign]
    assert not (await stand.ingest()).success
    assert len(await stand.rows("SELECT 1 FROM chunks")) == 1
    stand.embedder.embed = whole  # type: ignore[method-assign]
    ran = await stand.ingest()
    assert ran.counts() == (0, 0, 3, 0, 0, 2, 2), "what was done is not done again"


async def test_maintenance_leaves_a_clean_cache(stand: Stand) -> None:
    await stand.rows(
        "INSERT INTO completions_cache (req_id, project, scope, trace_id, model, content, answer, usage, expires_at)"
        " SELECT n::text, 'p', 's', n::text, 'm', CASE WHEN n = 3 THEN '' ELSE 'text' END, 'null', 'null',"
        " now() + make_interval(hours => n - 2) FROM generate_series(0, 4) AS n WHERE n <> 2"
    )
    ran = await stand.maintain()
    assert ran.success
    assert ran.checks == {"no_expired_answers": True}
    told = {"expired": 2, "quarantined": 1, "vectors_over_scope_cap": 0, "answers_over_cap": 0, "hnsw_indexes": 0}
    assert ran.told["completions_cache"] == told
    assert await stand.rows("SELECT req_id, quarantine_reason FROM completions_cache ORDER BY 1") == [
        ("3", "empty answer"),
        ("4", None),
    ]
    assert (await stand.maintain()).told["completions_cache"] == dict.fromkeys(told, 0)
