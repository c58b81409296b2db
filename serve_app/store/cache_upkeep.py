"""The upkeep of completions_cache that is too much for a sweep: whole-table work, in bounded statements."""

from collections.abc import Callable
from typing import Any, Final

from serve_app.store.hnsw import Fitted, fit_indexes
from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.queries import load_queries

_BATCH: Final = 5000  # rows of one statement


class CacheUpkeep:
    """Expiry, caps and quarantine. Every method raises errors.Unavailable when the database is away."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def expired(self, *, since_s: float = 0) -> int:
        """Answers that are still there though their time was over `since_s` ago."""
        async with self._pool.connection() as connection:
            return int(await self._queries.expired_answers(connection, since_s=since_s))

    async def purge(self) -> int:
        """Remove every expired answer; how many."""
        removed = 0
        while True:
            async with self._pool.connection() as connection:
                told = await self._queries.delete_expired_answers(connection, most=_BATCH)
            gone = int(told.rpartition(" ")[2])  # Postgres answers "DELETE 17"
            removed += gone
            if gone < _BATCH:
                return removed

    async def trim_scopes(self, most: int) -> int:
        """Let no scope have more than `most` vectors, because a search reads all of them; how many went.

        The answers stay: they are still found by req_id.
        """
        return await self._repeat(lambda c: self._queries.drop_crowded_vectors(c, most_per_scope=most, most=_BATCH))

    async def trim(self, most: int) -> int:
        """Let there be no more than `most` answers in all; how many went."""
        return await self._repeat(lambda c: self._queries.drop_excess_answers(c, most_held=most, most=_BATCH))

    async def quarantine_bad(self, dimensions: int) -> int:
        """Quarantine answers without text, and those whose vector is not of the model's length; how many."""
        count, after = 0, ""
        while True:
            async with self._pool.connection() as connection:
                page = await self._queries.quarantine_bad_answers(connection, after=after, dimensions=dimensions, most=_BATCH)
            count += int(page["quarantined"])
            if page["upto"] is None:
                return count
            after = page["upto"]

    async def fit_indexes(self, least: int | None, dimensions: int) -> Fitted:
        """Let each scope of at least `least` vectors have an HNSW index, and no other. See store.hnsw.fit_indexes."""
        return await fit_indexes(self._pool, least=least, dimensions=dimensions)

    async def quarantine(self, req_id: str, reason: str) -> bool:
        """Let this answer never be given again. False when there is no such answer, or it is in quarantine already."""
        async with self._pool.connection() as connection:
            found: str | None = await self._queries.quarantine_answer(connection, req_id=req_id, reason=reason)
        return found is not None

    async def _repeat(self, statement: Callable[[Connection], Any]) -> int:
        total = 0
        while True:
            async with self._pool.connection() as connection:
                gone = len([row async for row in statement(connection)])
            total += gone
            if gone < _BATCH:
                return total
