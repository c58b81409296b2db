"""What the store does when Postgres is slow, full, away and back again."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import pytest

from serve_app.errors import Unavailable
from serve_app.events import Usage
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.local.processes import ProcessRecord
from serve_app.ports import RunRecord
from serve_app.runs import Answer, Outcome, Question, Run, RunStatus, new_trace_id
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.api_keys import ApiKeys
from serve_app.store.migrate import migrate
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore


def a_run() -> Run:
    question = Question(project="p", route="direct", model="m", adapter=None, messages=[{"role": "user", "content": "x"}])
    trace_id = new_trace_id()
    return Run(trace_id=trace_id, req_id=question.req_id, key=trace_id, keyed=False, question=question, deadline=time.time() + 60)


class Switch:
    """A Postgres of the test's own, to be turned off and on."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._process: ProcessRecord | None = None

    @property
    def dsn(self) -> str:
        return self._server.dsn()

    def on(self) -> None:
        self._process = self._server.start()

    def off(self) -> None:
        if self._process is not None:
            self._server.stop(self._process)
            self._process = None


@pytest.fixture
def switch(unstarted_postgres: EmbeddedPostgres) -> Iterator[Switch]:
    switch = Switch(unstarted_postgres)
    switch.on()
    yield switch
    switch.off()


@pytest.fixture
async def small_pool(postgres_dsn: str) -> AsyncIterator[PostgresPool]:
    pool = PostgresPool(postgres_dsn, size=1, timeout_s=2)
    await until_pinged(pool)
    yield pool
    await pool.close()


async def until_pinged(pool: PostgresPool) -> None:
    """The pool's bound also holds for its first connection, which a busy machine may take its time for."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await pool.ping()
            except Unavailable:
                await asyncio.sleep(0.02)  # the pool tries again after a pause


async def until_found(store: PostgresRunStore, trace_id: str) -> RunRecord | None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await store.find(trace_id)
            except Unavailable:
                await asyncio.sleep(0.02)  # the pool tries again after a pause


async def test_postgres_may_go_and_come_back(switch: Switch) -> None:
    await migrate(switch.dsn)
    dsn = switch.dsn
    switch.off()
    pool = PostgresPool(dsn, timeout_s=2)  # built while the server is away
    store, cache, keys, run = PostgresRunStore(pool), PostgresAnswerCache(pool), ApiKeys(pool), a_run()
    try:
        outcome = Outcome(status=RunStatus.CANCELLED, reason="cancelled", usage=Usage())
        for attempt in (
            lambda: store.claim(run, lease_s=30),
            lambda: store.extend_leases([run.trace_id], lease_s=30),
            lambda: store.end_abandoned(limit=0),
            lambda: store.settle(run, outcome),
            lambda: store.find(run.trace_id),
            lambda: store.note_dagster_run(run.trace_id, "d"),
            lambda: cache.exact(run.req_id),
            lambda: cache.nearest("s", [1.0], threshold=0.9),
            lambda: keys.check("aif-x"),
            pool.ping,
        ):
            with pytest.raises(Unavailable, match="is away") as caught:
                await attempt()
            assert caught.value.retry_after_s
            assert "password" not in caught.value.message

        switch.on()
        assert await until_found(store, run.trace_id) is None
        assert (await store.claim(run, lease_s=30)).claimed

        switch.off()  # now with connections in the pool
        with pytest.raises(Unavailable):
            await store.find(run.trace_id)

        switch.on()
        assert await until_found(store, run.trace_id) is not None
    finally:
        await pool.close()


async def test_a_turn_in_the_shared_lane_is_waited_for_only_so_long(postgres_dsn: str) -> None:
    pool = PostgresPool(postgres_dsn, size=1, timeout_s=0.2)
    async with pool.shared_lane():
        with pytest.raises(Unavailable, match=r"no turn came within 0\.2 s") as caught:
            await pool.shared_lane().__aenter__()
        assert caught.value.retry_after_s
    async with pool.shared_lane():  # free again
        pass


async def test_while_postgres_is_away_requests_do_not_each_wait() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # takes connections and never answers
        writer.close()

    listener = await asyncio.start_server(deaf, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    dsn = f"postgresql://somebody@127.0.0.1:{port}/x"
    pool = PostgresPool(dsn, timeout_s=0.5)
    beside = PostgresPool(dsn, timeout_s=60, breaker=pool.breaker)
    try:
        with pytest.raises(Unavailable):
            await pool.ping()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await beside.ping()  # knows it from the other
        for _ in range(100):
            with pytest.raises(Unavailable):
                await pool.ping()
        assert time.monotonic() - began < 10  # one wait each would be 50 s
    finally:
        await pool.close()
        listener.close()


async def test_a_full_pool_is_a_clear_error_and_passes(small_pool: PostgresPool) -> None:
    async with small_pool.connection():
        with pytest.raises(Unavailable, match="all 1 connections"):
            await small_pool.ping()
    await small_pool.ping()


async def test_a_slow_statement_is_ended(small_pool: PostgresPool) -> None:
    with pytest.raises(Unavailable, match="did not finish a statement in time"):
        async with small_pool.connection() as connection:
            await connection.execute("SELECT pg_sleep(60)")
    await small_pool.ping()


@asynccontextmanager
async def relay(dsn: str, frozen: asyncio.Event) -> AsyncIterator[str]:
    """The DSN of a way to the same database on which nothing passes any more once `frozen` is set, and nothing breaks."""
    parts = urlsplit(dsn)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if frozen.is_set():
                await asyncio.Event().wait()
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection(parts.hostname, parts.port)
        for work in (pass_on(reader, back), pass_on(to, writer)):
            ways.append(asyncio.ensure_future(work))
        ends.extend((writer, back))

    ways: list[asyncio.Future[None]] = []
    ends: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    login = parts.netloc.rpartition("@")[0]
    try:
        yield urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    finally:
        server.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in ends:
            end.close()


async def test_a_frozen_server_is_unavailable_to_statements_under_way(postgres_dsn: str) -> None:
    frozen = asyncio.Event()
    async with relay(postgres_dsn, frozen) as dsn:
        pool = PostgresPool(dsn, size=1, timeout_s=1)
        try:
            await until_pinged(pool)
            frozen.set()
            for _ in range(2):  # the first over the connection that was there, the second over none
                with pytest.raises(Unavailable):
                    await pool.ping()
        finally:
            await pool.close()


async def test_a_closed_pool_says_so(postgres_dsn: str) -> None:
    pool = PostgresPool(postgres_dsn)
    await pool.ping()
    await pool.close()
    await pool.close()
    with pytest.raises(Unavailable, match="is closed"):
        await pool.ping()


async def test_sessions_can_be_told_apart_and_are_bounded(postgres_pool: PostgresPool) -> None:
    async with postgres_pool.connection() as connection:
        settings = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in SESSION}
    assert settings == SESSION


SESSION = {"application_name": "aifactory", "statement_timeout": "5s", "plan_cache_mode": "force_custom_plan"}


async def test_a_cancelled_caller_gives_its_connection_back(small_pool: PostgresPool) -> None:
    started = asyncio.Event()

    async def slow() -> None:
        async with small_pool.transaction() as connection:
            await connection.execute("CREATE TABLE left_behind ()")
            started.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(slow())
        await started.wait()
        task.cancel()
    assert task.cancelled()
    async with small_pool.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('left_behind')") is None


async def test_the_cache_and_the_log_are_written_together_or_not_at_all(postgres_pool: PostgresPool) -> None:
    store, cache, run = PostgresRunStore(postgres_pool), PostgresAnswerCache(postgres_pool), a_run()
    answer = Answer(model="m", messages=({"role": "assistant", "content": "x"},), ends=(), usage=Usage())
    done = Outcome(status=RunStatus.SUCCEEDED, reason="stop", usage=Usage(), answer=answer)
    claim = await store.claim(run, lease_s=30)
    async with postgres_pool.connection() as connection:
        await connection.execute("ALTER TABLE completion_vectors RENAME TO gone")
    with pytest.raises(Unavailable, match="lacks part of the schema"):
        await store.settle(run, done)
    assert await cache.exact(run.req_id) is None
    assert await store.find(run.trace_id) == claim.record
    async with postgres_pool.connection() as connection:
        await connection.execute("ALTER TABLE gone RENAME TO completion_vectors")
    assert await store.settle(run, done)
    assert await cache.exact(run.req_id) is not None
