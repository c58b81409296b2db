"""The embedding model of a process that may never need it: loaded when it is first asked for.

Of the debates only those that end by `consensus` embed something, and the model takes a second and some 140 MB.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from serve_app.errors import Unavailable
from serve_app.model_files import ModelError
from serve_app.ports import Embedder
from serve_app.settings import Settings


class LoadedEmbedder(Embedder, Protocol):
    """What a loader gives."""

    def close(self) -> None: ...


def load(settings: Settings) -> LoadedEmbedder:
    """The configured model. Blocks for about a second. Raises model_files.ModelError."""
    from serve_app.embeddings import load_embedder  # not for processes that only show the jobs

    return load_embedder(settings)


class OnDemandEmbedder:
    """Loads in a thread, once, however many ask at the same time; after a fault the next one tries again.

    For one event loop. Close it when done.
    """

    def __init__(self, settings: Settings, load: Callable[[Settings], LoadedEmbedder] = load) -> None:
        self._settings = settings
        self._load = load
        self._loading: asyncio.Future[LoadedEmbedder] | None = None
        self._closed = False

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text. Raises errors.Unavailable when the model cannot be loaded, errors.Overloaded."""
        return await (await self.loaded()).embed(texts)

    async def loaded(self) -> Embedder:
        """The embedder itself, which goes with this one. Raises errors.Unavailable when the model cannot be loaded."""
        self._check_open()
        if self._loading is None or _failed(self._loading):
            self._loading = asyncio.get_running_loop().run_in_executor(None, self._load, self._settings)
        try:
            # Who asked first may be cancelled, and others wait for the same.
            embedder = await asyncio.shield(self._loading)
        except ModelError as error:
            raise Unavailable(f"the embedding model {self._settings.embedding_model!r} cannot be loaded: {error}") from error
        self._check_open()
        return embedder

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the embedder is closed: this process is ending")

    def close(self) -> None:
        """End the embedder; one that is being loaded ends as soon as it is there. Twice is the same as once."""
        self._closed = True
        if self._loading is not None and self._loading.done():
            _end(self._loading)
        elif self._loading is not None:
            self._loading.add_done_callback(_end)


def _failed(loading: "asyncio.Future[LoadedEmbedder]") -> bool:
    return loading.done() and (loading.cancelled() or loading.exception() is not None)


def _end(loading: "asyncio.Future[LoadedEmbedder]") -> None:
    if not _failed(loading):
        loading.result().close()
