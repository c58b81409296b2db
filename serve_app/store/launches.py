"""What a debate's own process executes: the runs that were handed to one, until they end."""

from serve_app.store.pool import PostgresPool
from serve_app.store.queries import load_queries


class PostgresLaunches:
    """Launched runs by trace_id, as bytes. Every method raises errors.Unavailable when the database is away."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def put(self, trace_id: str, run: bytes) -> None:
        """Keep the run for its process; one that is launched again replaces itself."""
        async with self._pool.connection() as connection:
            await self._queries.put_launch(connection, trace_id=trace_id, run=run)

    async def find(self, trace_id: str) -> bytes | None:
        """The run of this name, or None when it was not launched or has ended."""
        async with self._pool.connection() as connection:
            run = await self._queries.find_launch(connection, trace_id=trace_id)
        return None if run is None else bytes(run)

    async def has_process(self, trace_id: str) -> bool:
        """Whether a process was started for the run that nobody has found silent."""
        async with self._pool.connection() as connection:
            return bool(await self._queries.has_process(connection, trace_id=trace_id))

    async def mark_silent(self, trace_id: str) -> None:
        """The run's process is gone, or never came."""
        async with self._pool.connection() as connection:
            await self._queries.mark_silent(connection, trace_id=trace_id)

    async def drop(self, trace_id: str) -> None:
        """The run has ended: forget its prompt."""
        async with self._pool.connection() as connection:
            await self._queries.drop_launch(connection, trace_id=trace_id)
