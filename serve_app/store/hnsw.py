"""Approximate search for scopes too large to be compared row by row: opt-in, one HNSW index per huge scope.

See docs/adr/0021-hnsw-opt-in.md. Small scopes stay exact, because the index of one scope cannot serve another.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import aiosql

from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.queries import load_queries, sql_dir

MOST_INDEXES: Final = 16  # every statement's planning looks at each of them
_KEEP_SHARE: Final = 0.5  # a scope that has shrunk to this part of the bound loses its index, so that none flaps
_BUILD_S: Final = 7300.0  # a little more than the server's own limit in index.sql
_SCOPE: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What fit_indexes did: indexes built and dropped, and how many there are now."""

    built: int = 0
    dropped: int = 0
    held: int = 0


@cache
def search_queries(dimensions: int) -> Any:
    """The queries of `sql/hnsw/search.sql` for vectors of this length."""
    return _filled("search.sql", dimensions=str(int(dimensions)))


async def fit_indexes(pool: PostgresPool, *, least: int | None, dimensions: int) -> Fitted:
    """Let each scope of at least `least` vectors have an index, the largest first, and no other; None: no scope at all.

    Slow: a build reads its whole scope, takes minutes for some 100,000 rows, and locks nobody out. Does nothing while
    another process is at it. Raises errors.Unavailable.
    """
    queries = load_queries()
    async with pool.connection() as connection:
        if not await queries.lock_hnsw_indexes(connection):
            return Fitted()
        try:
            async with _patient(connection):
                return await _fit(connection, least, dimensions)
        finally:
            await queries.unlock_hnsw_indexes(connection)


async def _fit(connection: Connection, least: int | None, dimensions: int) -> Fitted:
    queries = load_queries()
    found = {row["name"]: row["valid"] async for row in queries.hnsw_indexes(connection)}
    wanted: dict[str, str] = {}  # name to scope
    if least is not None:
        shrunk = max(1, int(least * _KEEP_SHARE))
        async for row in queries.large_scopes(connection, least=shrunk, most=MOST_INDEXES):
            name = _name(row["scope"], dimensions)
            if row["held"] >= least or found.get(name):
                wanted[name] = row["scope"]
    gone = [name for name, valid in found.items() if not valid or name not in wanted]
    for name in gone:
        await _run(connection, "drop_index", name=name)
    new = [name for name in wanted if name in gone or name not in found]
    for name in new:
        await _run(connection, "create_index", name=name, scope=wanted[name], dimensions=str(int(dimensions)))
    return Fitted(built=len(new), dropped=len(gone), held=len(wanted))


@asynccontextmanager
async def _patient(connection: Connection) -> AsyncIterator[None]:
    await _run(connection, "allow_long_statements")
    try:
        yield
    finally:
        await _run(connection, "forbid_long_statements")


async def _run(connection: Connection, statement: str, **names: str) -> None:
    """A statement of `sql/hnsw/index.sql`. Index statements take no parameters, so names are put into the text."""
    known = {"name": "", "scope": "", "dimensions": "", **names}
    await connection.execute(getattr(_filled("index.sql", **known), statement).sql, timeout=_BUILD_S)


def _name(scope: str, dimensions: int) -> str:
    if not _SCOPE.fullmatch(scope):
        raise ValueError(f"a scope is a sha256 in 64 hex digits, not {scope!r}")
    return f"completion_vectors_hnsw_{scope[:16]}_{int(dimensions)}"


def _filled(file: str, **names: str) -> Any:
    text = (sql_dir() / "hnsw" / file).read_text(encoding="utf-8")
    return aiosql.from_str(text.format(**names), "asyncpg")
