"""The way to Postgres: a pool that connects when it is needed and heals by itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import orjson
from pgvector.asyncpg import register_vector

from serve_app.errors import Unavailable
from serve_app.store.failures import RETRY_AFTER_S, away_is_unavailable, location, unavailable

Connection = Any  # asyncpg's connection or its pool proxy; the two share no useful type


class Breaker:
    """Remembers that Postgres is away, so that requests fail at once instead of waiting for one timeout each.

    After `pause_s` one caller may try again while the others keep failing; its success closes the breaker.
    """

    def __init__(self, pause_s: float, trial_s: float) -> None:
        self._pause_s = pause_s
        self._trial_s = trial_s
        self._retry_at = 0.0
        self._cause: str | None = None

    def enter(self) -> None:
        """Raise errors.Unavailable unless a connection may be tried now."""
        if self._cause is None:
            return
        now = time.monotonic()
        if now < self._retry_at:
            raise unavailable(self._cause)
        # This caller tries. Should it be cancelled, the next trial comes after trial_s.
        self._retry_at = now + self._trial_s

    def trip(self, cause: str) -> None:
        """Postgres did not answer."""
        self._cause, self._retry_at = cause, time.monotonic() + self._pause_s

    def close(self) -> None:
        """Postgres answered."""
        self._cause = None


class PostgresPool:
    """Connections to one database. Building it does no I/O, so it can be built while Postgres is away.

    `timeout_s` bounds each of: getting a connection, one statement. Use it from one event loop, and close it there.
    `custom_plans`: each statement is planned anew for its values. Searches need that: how many rows they read depends on
    the scope or the project, which a plan for all does not know. Elsewhere it doubles what a short statement costs.
    `breaker`: that of another pool on the same server, so that what one finds out the other knows.
    """

    def __init__(
        self,
        dsn: str,
        *,
        size: int = 8,
        timeout_s: float = 5.0,
        application_name: str = "aifactory",
        custom_plans: bool = True,
        breaker: Breaker | None = None,
    ) -> None:
        self._dsn = dsn
        self._size = size
        self._timeout_s = timeout_s
        self._application_name = application_name
        self._plans = "force_custom_plan" if custom_plans else "auto"
        self._where = location(dsn)
        self.breaker = breaker or Breaker(pause_s=RETRY_AFTER_S / 2, trial_s=timeout_s)
        self._lane = asyncio.Semaphore(max(1, size // 2))
        self._pool: Any = None
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection. Raises errors.Unavailable for any failure of the server, in here or in the block."""
        pool, borrowed = await self._acquire()
        try:
            with away_is_unavailable(self._where):
                yield borrowed
        finally:
            # asyncpg ends a connection that cannot be given back because Postgres froze. That must not take the place of
            # what the block raised: TimeoutError here would pass every `except Unavailable`.
            with suppress(OSError, asyncpg.PostgresConnectionError):
                await pool.release(borrowed, timeout=self._timeout_s)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Borrow a connection with an open transaction: committed at the end, rolled back on any exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def shared_lane(self) -> AsyncIterator[None]:
        """Enter this before borrowing a connection to wait with for a row that many want at once, such as a limit's.

        Half of the pool may: the other connections are for those who wait for nobody. Raises errors.Unavailable.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._lane.acquire()
        except TimeoutError:
            busy = f"too many wait for the same rows of Postgres at {self._where}: no turn came within {self._timeout_s:g} s"
            raise unavailable(busy) from None
        try:
            yield
        finally:
            self._lane.release()

    async def ping(self) -> None:
        """Ask the server for an answer. Raises errors.Unavailable."""
        async with self.connection() as connection:
            await connection.execute("SELECT 1")

    async def close(self) -> None:
        """Close every connection; those in use get `timeout_s` to come back. Safe to call twice."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def _acquire(self) -> tuple[Any, Connection]:
        if self._closed:
            raise unavailable(f"the connection pool to Postgres at {self._where} is closed")
        self.breaker.enter()
        pool = await self._opened()
        try:
            with away_is_unavailable(self._where):
                borrowed = await pool.acquire(timeout=self._timeout_s)
        except Unavailable as error:
            if self._all_in_use(pool, error):
                # A full pool says nothing about the server, so the breaker stays as it is.
                busy = f"all {self._size} connections to Postgres at {self._where} were busy for {self._timeout_s:g} s"
                raise unavailable(busy) from error
            self.breaker.trip(error.message)
            raise
        self.breaker.close()
        return pool, borrowed

    def _all_in_use(self, pool: Any, error: Unavailable) -> bool:
        timed_out = isinstance(error.__cause__, TimeoutError)
        return timed_out and pool.get_size() >= self._size and pool.get_idle_size() == 0

    async def _opened(self) -> Any:
        if self._pool is None:
            # Without a first connection (min_size=0) this awaits nothing, so two callers cannot both get here.
            self._pool = asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=self._size,
                timeout=self._timeout_s,
                command_timeout=self._timeout_s + 1,  # the server's own limit comes first and leaves the connection usable
                init=self._prepare,
                reset=_nothing_to_reset,
                server_settings={
                    "application_name": self._application_name,
                    "statement_timeout": _milliseconds(self._timeout_s),
                    "lock_timeout": _milliseconds(self._timeout_s),
                    "idle_in_transaction_session_timeout": _milliseconds(self._timeout_s * 2),
                    "plan_cache_mode": self._plans,
                },
            )
            await self._pool
        return self._pool

    async def _prepare(self, connection: Connection) -> None:
        """Teach a new connection our types."""
        await set_json_codecs(connection)
        schema = await connection.fetchval(
            "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
        )
        if schema is None:
            raise unavailable(f"the database at {self._where} has no schema yet: run `aifactory migrate`")
        await register_vector(connection, schema=schema)


async def set_json_codecs(connection: Connection) -> None:
    """Let json and jsonb values be Python values, through orjson."""
    await connection.set_type_codec("json", schema="pg_catalog", format="binary", encoder=orjson.dumps, decoder=orjson.loads)
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: b"\x01" + orjson.dumps(value),  # jsonb's binary form begins with its version
        decoder=lambda raw: orjson.loads(raw[1:]),
    )


async def _nothing_to_reset(_: Connection) -> None:
    """We leave no state in a session, so returning a connection needs no round trip."""


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
