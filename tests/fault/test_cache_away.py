"""Postgres goes while the cache is asked: what would have been a hit becomes a miss in bounded time, never an error.

A real gateway on a socket over a real Postgres that is killed or frozen; the model and the bus are in memory.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import asyncpg
import httpx
import psutil
import pytest

from bench.chaos.servers import MortalPostgres
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway

TIMEOUT_S = 1.0  # of a statement and of a connection
ASKED, ALIKE = "the same question", "the same question, in other words"


@dataclass
class Scene:
    """A gateway over a Postgres that holds the answer to ASKED."""

    postgres: MortalPostgres
    dsn: str
    pool: PostgresPool
    gateway: GatewayUnderTest
    http: httpx.AsyncClient

    async def ask(self, text: str, **fields: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def until_hit(self, kind: str, text: str, **fields: Any) -> None:
        """Ask until the cache answers: while a first connection takes too long there is neither look-up nor record."""
        async with asyncio.timeout(60):
            while (await self.ask(text, **fields)).headers.get("x-cache") != kind:
                await asyncio.sleep(0.1)


class Opening(Protocol):
    def __call__(self, *, indexed: bool, timeout_s: float) -> AbstractAsyncContextManager[Scene]: ...


@pytest.fixture
def opened(mortal_server: MortalPostgres, mortal_dsn: str) -> Opening:
    return partial(_opened, mortal_server, mortal_dsn)


@asynccontextmanager
async def _opened(postgres: MortalPostgres, dsn: str, *, indexed: bool, timeout_s: float) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        pool = PostgresPool(dsn, timeout_s=timeout_s)
        stack.push_async_callback(pool.close)
        parts = {"store": PostgresRunStore(pool), "cache": PostgresAnswerCache(pool, indexed=indexed), "trust": None}
        gateway = await stack.enter_async_context(serve_gateway(parts, cache_guards=[]))
        scene = Scene(postgres, dsn, pool, gateway, await stack.enter_async_context(gateway.http()))
        await scene.until_hit("exact", ASKED)
        await scene.until_hit("semantic", ALIKE, x_cache={"mode": "only"})  # a miss leaves no answer of its own
        yield scene


@asynccontextmanager
async def frozen(scene: Scene) -> AsyncIterator[None]:
    """Every process of the server stands still, and its connections stay open."""
    connection = await asyncpg.connect(scene.dsn)
    server = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
    await connection.close()
    assert server is not None
    with ExitStack() as stopped:
        # The server first: it starts no process any more, and a process that ends keeps its id until the server goes on.
        _stop(server, stopped)
        for process in server.children(recursive=True):
            _stop(process, stopped)
        yield


def _stop(process: psutil.Process, until_end_of: ExitStack) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    until_end_of.callback(os.kill, process.pid, signal.SIGCONT)


def is_a_good_miss(response: httpx.Response) -> None:
    assert response.status_code == 200, response.text
    assert response.headers["x-cache"] == "miss"
    assert response.json()["choices"][0]["message"]["content"] == "The capital is Paris."


async def asked_in_every_way(scene: Scene) -> None:
    """What was an exact hit, what was a semantic one, and what the cache alone may answer."""
    is_a_good_miss(await scene.ask(ASKED))
    is_a_good_miss(await scene.ask(ALIKE))
    only = await scene.ask(ALIKE, x_cache={"mode": "only"})
    assert (only.status_code, only.json()["error"]["code"]) == (404, "cache_miss")


@pytest.mark.parametrize("indexed", [False, True], ids=["exact search", "index"])
async def test_a_server_that_is_gone_means_miss(opened: Opening, indexed: bool) -> None:
    async with opened(indexed=indexed, timeout_s=TIMEOUT_S) as scene:
        await asyncio.to_thread(scene.postgres.kill)
        await asked_in_every_way(scene)


@pytest.mark.parametrize("indexed", [False, True], ids=["exact search", "index"])
async def test_a_server_that_is_frozen_means_miss(opened: Opening, indexed: bool) -> None:
    async with opened(indexed=indexed, timeout_s=TIMEOUT_S) as scene, frozen(scene):
        await asked_in_every_way(scene)


EXACT, NEAR = ("completions_cache", ASKED), ("completion_vectors", "the same question, once more")


@pytest.mark.parametrize(
    ("look_up", "indexed", "end"),
    [
        pytest.param(EXACT, False, MortalPostgres.kill, id="exact, killed"),
        pytest.param(NEAR, False, MortalPostgres.kill, id="near, killed"),
        pytest.param(NEAR, True, MortalPostgres.kill, id="near by index, killed"),
        pytest.param(EXACT, False, None, id="exact, too slow"),
        pytest.param(NEAR, True, None, id="near by index, too slow"),
    ],
)
async def test_a_look_up_that_is_under_way_becomes_a_miss(
    opened: Opening, look_up: tuple[str, str], indexed: bool, end: Callable[[MortalPostgres], int] | None
) -> None:
    """The look-up waits for a lock when the server is killed, or until its own time is over."""
    async with opened(indexed=indexed, timeout_s=30 if end else TIMEOUT_S) as scene:
        holder = await asyncpg.connect(scene.dsn)
        table, text = look_up
        await holder.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        try:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(scene.ask(text))
                await until_somebody_waits(holder)
                if end is not None:
                    await asyncio.to_thread(end, scene.postgres)
            is_a_good_miss(asking.result())
        finally:
            holder.terminate()


async def until_somebody_waits(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(30):
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)


async def test_an_answer_that_cannot_be_read_means_miss(opened: Opening) -> None:
    async with opened(indexed=False, timeout_s=30) as scene:
        async with scene.pool.connection() as connection:
            await connection.execute('UPDATE completions_cache SET answer = \'{"of": "tomorrow"}\'')
        is_a_good_miss(await scene.ask(ASKED))  # neither its own answer, nor any near it
        assert (await scene.ask(ASKED)).headers["x-cache"] == "exact", "the fresh answer has taken its place"
