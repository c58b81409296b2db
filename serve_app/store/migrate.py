"""Bring a database to the schema of this program: `sql/migrations/NNNN_slug.sql`, in order, each in a transaction."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

from serve_app.store.failures import away_is_unavailable, location
from serve_app.store.pool import Connection
from serve_app.store.queries import sql_dir

MINIMUM_SERVER_VERSION: Final = 18
_LOCK: Final = 0x61696661_63746F72  # "aifactor": two programs that migrate at once take turns
_CONNECT_TIMEOUT_S: Final = 10.0
_STATEMENT_TIMEOUT_S: Final = 300.0  # also bounds the wait for another program's migration


class MigrationError(RuntimeError):
    """The database cannot be brought to this schema; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `checksum` is the sha256 of its text."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Every migration of this program, in order."""
    files = sorted((sql_dir() / "migrations").glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return [Migration(path.stem, path.read_text(encoding="utf-8")) for path in files]


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing and return the names applied. Raises MigrationError, or errors.Unavailable."""
    with away_is_unavailable(location(dsn)):
        async with _connected(dsn) as connection:
            await _check_server(connection, location(dsn))
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)  # freed with the connection
            return await _apply_missing(connection, migrations())


async def ensure_database(dsn: str) -> None:
    """Create the database that the DSN names unless it exists, through the server's `postgres` database."""
    parts = urlsplit(dsn)
    name = unquote(parts.path.lstrip("/"))
    if not name:
        raise MigrationError(f"the DSN of Postgres at {location(dsn)} names no database: add /NAME at its end")
    with away_is_unavailable(location(dsn)):
        async with _connected(urlunsplit(parts._replace(path="/postgres"))) as connection:
            if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                return
            quoted = name.replace('"', '""')
            try:
                await connection.execute(f'CREATE DATABASE "{quoted}"')
            except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
                return  # another program was faster
            except asyncpg.InsufficientPrivilegeError as error:
                raise MigrationError(f"this user may not create database {location(dsn)}: let an administrator do it") from error


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(
        dsn,
        timeout=_CONNECT_TIMEOUT_S,
        command_timeout=_STATEMENT_TIMEOUT_S,
        server_settings={"application_name": "aifactory migrate"},
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)


async def _check_server(connection: Connection, where: str) -> None:
    major = connection.get_server_version().major
    if major < MINIMUM_SERVER_VERSION:
        raise MigrationError(f"Postgres at {where} is version {major}; aifactory needs {MINIMUM_SERVER_VERSION} or newer")
    if not await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
        raise MigrationError(f"Postgres at {where} does not offer the extension `vector`: install pgvector 0.8 or newer there")


async def _apply_missing(connection: Connection, known: list[Migration]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations"
        " (name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied = {row["name"]: row["checksum"] for row in await connection.fetch("SELECT name, checksum FROM schema_migrations")}
    _check_history(applied, known)
    missing = [migration for migration in known if migration.name not in applied]
    for migration in missing:
        await _apply(connection, migration)
    return [migration.name for migration in missing]


def _check_history(applied: dict[str, str], known: list[Migration]) -> None:
    foreign = sorted(set(applied) - {migration.name for migration in known})
    if foreign:
        raise MigrationError(f"the database is newer than this program (unknown: {', '.join(foreign)}): update aifactory")
    for migration in known:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.name} was edited after it was applied: restore it and put the change into a new one"
            )


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)", migration.name, migration.checksum
            )
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"migration {migration.name} needs a right that this user lacks ({error});"
            " let an administrator run it, or CREATE EXTENSION vector beforehand"
        ) from error
    except (asyncpg.SyntaxOrAccessError, asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        raise MigrationError(f"migration {migration.name} failed: {error}") from error
