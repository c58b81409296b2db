"""The embedder that loads when it is first asked for."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from dagster_project.embedder import LoadedEmbedder, OnDemandEmbedder
from dagster_project.embedder import load as load_really
from serve_app.errors import Unavailable
from serve_app.settings import Settings

WAIT_S = 30.0


class SlowLoader:
    """Loads the real model when `go` is set; counts."""

    def __init__(self) -> None:
        self.loads = 0
        self.go = threading.Event()
        self.began = threading.Event()
        self.threads: set[int] = set()
        self.made: LoadedEmbedder | None = None

    def __call__(self, settings: Settings) -> LoadedEmbedder:
        self.loads += 1
        self.threads.add(threading.get_ident())
        self.began.set()
        assert self.go.wait(WAIT_S)
        self.made = load_really(settings)
        return self.made


@pytest.fixture
def settings() -> Settings:
    return Settings(config="simulated")


async def test_nothing_is_loaded_before_somebody_asks(settings: Settings) -> None:
    loader = SlowLoader()
    embedder = OnDemandEmbedder(settings, loader)
    embedder.close()
    assert loader.loads == 0


async def test_concurrent_first_uses_load_once_and_off_the_loop(settings: Settings) -> None:
    loader = SlowLoader()
    embedder = OnDemandEmbedder(settings, loader)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        asked = [group.create_task(embedder.embed([text])) for text in ("Paris", "Lyon", "Paris")]
        await asyncio.to_thread(loader.began.wait, WAIT_S)
        assert not any(task.done() for task in asked), "the loop is free while the model loads"
        loader.go.set()
    vectors = [task.result()[0] for task in asked]
    assert vectors[0] == vectors[2] != vectors[1]
    await embedder.embed(["later"])
    assert loader.loads == 1
    assert threading.get_ident() not in loader.threads
    embedder.close()


async def test_who_asked_first_may_be_cancelled(settings: Settings) -> None:
    loader = SlowLoader()
    embedder = OnDemandEmbedder(settings, loader)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        first = group.create_task(embedder.embed(["Paris"]))
        await asyncio.to_thread(loader.began.wait, WAIT_S)
        second = group.create_task(embedder.embed(["Paris"]))
        first.cancel()
        loader.go.set()
    assert first.cancelled()
    assert len(second.result()[0]) == 384
    assert loader.loads == 1
    embedder.close()


async def test_a_model_that_is_not_there_is_unavailable_until_it_is(settings: Settings, tmp_path: Path) -> None:
    sources = [settings.model_copy(update={"embedding_source": str(tmp_path / "nowhere")}), settings]
    embedder = OnDemandEmbedder(settings, lambda _settings: load_really(sources.pop(0)))
    with pytest.raises(Unavailable, match=r"embedding model .* cannot be loaded: .*nowhere"):
        await embedder.embed(["Paris"])
    assert len((await embedder.embed(["Paris"]))[0]) == 384
    embedder.close()


async def test_closing_ends_what_is_still_loading(settings: Settings) -> None:
    loader = SlowLoader()
    embedder = OnDemandEmbedder(settings, loader)
    async with asyncio.timeout(WAIT_S):
        asked = asyncio.gather(embedder.loaded(), return_exceptions=True)
        await asyncio.to_thread(loader.began.wait, WAIT_S)
        embedder.close()
        loader.go.set()
        (told,) = await asked
    assert isinstance(told, Unavailable)
    with pytest.raises(Unavailable, match="is closed"):
        await embedder.embed(["Paris"])
    assert loader.made is not None
    with pytest.raises(RuntimeError, match="shutdown"):
        await loader.made.embed(["Paris"])


async def test_processes_that_only_show_jobs_import_no_model_runtime() -> None:
    code = "import sys, dagster_project.definitions; sys.exit('onnxruntime' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
