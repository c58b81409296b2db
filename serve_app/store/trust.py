"""CacheTrust on Postgres."""

from serve_app.ports import CacheHit
from serve_app.store.pool import PostgresPool
from serve_app.store.queries import load_queries
from serve_app.trust import Trust, raised


class PostgresCacheTrust:
    """scope_trust, and the quarantine of refuted answers."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def trust(self, scope: str) -> Trust:
        """See trust.CacheTrust."""
        async with self._pool.connection() as connection:
            row = await self._queries.scope_trust(connection, scope=scope)
        return Trust() if row is None else Trust(row["least_similarity"], row["confirmed"], row["refuted"])

    async def confirm(self, scope: str) -> None:
        """See trust.CacheTrust."""
        async with self._pool.connection() as connection:
            await self._queries.confirm_scope(connection, scope=scope)

    async def refute(self, scope: str, hit: CacheHit, *, reason: str) -> bool:
        """See trust.CacheTrust."""
        async with self._pool.transaction() as connection:
            gone = await self._queries.refute_answer(connection, req_id=hit.req_id, trace_id=hit.trace_id, reason=reason)
            await self._queries.distrust_scope(connection, scope=scope, least_similarity=raised(hit.similarity))
        return gone is not None
