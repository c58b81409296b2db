"""The resource `stack`: what assets that work on stored texts need of the running stack.

It asks no replica and publishes nothing, so that NATS and Ray may be away; and it does not go through serve_app.wiring,
which would bring Ray into every Dagster process.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from dagster import Failure, InitResourceContext, ResourceDefinition

from dagster_project.embedder import OnDemandEmbedder
from dagster_project.home import stored_settings
from serve_app.errors import AifactoryError
from serve_app.ports import Embedder
from serve_app.settings import Settings
from serve_app.store.cache_upkeep import CacheUpkeep
from serve_app.store.documents import PostgresDocuments
from serve_app.store.pool import PostgresPool

T = TypeVar("T")
STACK: Final = "stack"
_STATEMENT_S: Final = 60.0  # nobody waits for a job's statement as a caller waits for an answer


@dataclass(frozen=True, slots=True)
class StoreParts:
    """Open until the step ends."""

    documents: PostgresDocuments
    upkeep: CacheUpkeep
    embedder: Embedder


class StackParts:
    """Opens the parts for one step. An `embedder` that is given is used instead of one of the step's own."""

    def __init__(self, settings: Settings, embedder: Embedder | None = None) -> None:
        self.settings = settings
        self._embedder = embedder

    def run(self, name: str, work: Callable[[StoreParts], Coroutine[Any, Any, T]]) -> T:
        """Do the work on a loop of its own. Blocks. Raises dagster.Failure that says what is away or wrong."""

        async def opened() -> T:
            async with self._open(name) as parts:
                return await work(parts)

        try:
            return asyncio.run(opened())
        except AifactoryError as error:
            raise Failure(error.message) from error
        except ValueError as error:
            raise Failure(str(error)) from error

    @asynccontextmanager
    async def _open(self, name: str) -> AsyncIterator[StoreParts]:
        if self.settings.postgres_dsn is None:
            raise ValueError("postgres_dsn is not set: start the stack first (scripts/up), or set AIFACTORY_POSTGRES_DSN")
        pool = PostgresPool(
            self.settings.postgres_dsn.get_secret_value(),
            size=2,
            timeout_s=max(self.settings.postgres_timeout_s, _STATEMENT_S),
            application_name=f"aifactory-{name}",
        )
        try:
            async with self._embedding() as embedder:
                yield StoreParts(PostgresDocuments(pool), CacheUpkeep(pool), embedder)
        finally:
            await pool.close()

    @asynccontextmanager
    async def _embedding(self) -> AsyncIterator[Embedder]:
        if self._embedder is not None:
            yield self._embedder
            return
        with closing(OnDemandEmbedder(self.settings)) as embedder:
            yield await embedder.loaded()


def _of_this_stack(context: InitResourceContext) -> StackParts:
    if context.instance is None:
        raise Failure("the resource `stack` finds its settings through a Dagster instance: run the job on the stack")
    return StackParts(stored_settings(context.instance.root_directory))


stack_parts: Final = ResourceDefinition(_of_this_stack, description="Postgres and the embedding model of this stack")
