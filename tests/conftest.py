"""Fixtures for Postgres: one real server per test session, one fresh database per test that asks for it."""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from serve_app.local.ports import choose_port
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore
from serve_app.store.migrate import ensure_database, migrate
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import Store

SERVER_VARIABLE = "AIFACTORY_TEST_POSTGRES_DSN"


def in_database(dsn: str, name: str) -> str:
    """The DSN of another database on the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@contextmanager
def _embedded() -> Iterator[EmbeddedPostgres]:
    """A server in a folder of its own, outside pytest's: as root the server runs as a user who may not enter that."""
    folder = Path(tempfile.mkdtemp(prefix="aifactory-test-"))
    folder.chmod(0o711)
    try:
        yield EmbeddedPostgres(folder / "postgres", choose_port(0, set()), folder / "log" / "postgres.log")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def unstarted_postgres() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, not started yet; the test stops what it starts."""
    with _embedded() as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server() -> AsyncIterator[str]:
    """The DSN of a real Postgres: your own if AIFACTORY_TEST_POSTGRES_DSN names one, else an embedded one."""
    own = os.environ.get(SERVER_VARIABLE)  # noqa: TID251 - a setting of the tests, not of the program
    if own:
        yield own
        return
    with _embedded() as server:
        process = server.start()
        try:
            dsn = server.dsn("postgres")
            # Nothing here outlives the tests, and creating databases is mostly waiting for the disk.
            await _administer(dsn, "ALTER SYSTEM SET fsync = off")
            await _administer(dsn, "SELECT pg_reload_conf()")
            yield dsn
        finally:
            server.stop(process)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_template(postgres_server: str) -> AsyncIterator[str]:
    """The name of a migrated database to clone."""
    name = f"aif_template_{secrets.token_hex(4)}"
    dsn = in_database(postgres_server, name)
    await ensure_database(dsn)
    await migrate(dsn)
    yield name
    await _administer(postgres_server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def empty_database(postgres_server: str) -> AsyncIterator[str]:
    """The DSN of a database that does not exist yet; dropped at the end if it does by then."""
    name = f"aif_empty_{secrets.token_hex(4)}"
    yield in_database(postgres_server, name)
    await _administer(postgres_server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
async def postgres_dsn(postgres_server: str, postgres_template: str) -> AsyncIterator[str]:
    """The DSN of a fresh, migrated database."""
    name = f"aif_test_{secrets.token_hex(4)}"
    await _administer(postgres_server, f'CREATE DATABASE "{name}" TEMPLATE "{postgres_template}"')
    yield in_database(postgres_server, name)
    await _administer(postgres_server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def postgres_pool(postgres_dsn: str) -> AsyncIterator[PostgresPool]:
    """A pool on a fresh, migrated database."""
    pool = PostgresPool(postgres_dsn)
    yield pool
    await pool.close()


@pytest.fixture(params=["postgres", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each store that obeys the contract, in turn."""
    if request.param == "memory":
        cache = InMemoryAnswerCache()
        return Store(InMemoryRunStore(cache), cache)
    pool = request.getfixturevalue("postgres_pool")
    return Store(PostgresRunStore(pool), PostgresAnswerCache(pool))


async def _administer(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
