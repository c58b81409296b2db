"""Migrations and named queries, against a real Postgres."""

import asyncio
import shutil
from pathlib import Path

import asyncpg
import pytest

from serve_app.errors import Unavailable
from serve_app.store.migrate import MigrationError, ensure_database, migrate, migrations
from serve_app.store.pool import PostgresPool
from serve_app.store.queries import load_queries, sql_dir

NAMES = [migration.name for migration in migrations()]


@pytest.fixture
def own_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations that a test may change; the program is pointed at it."""
    copy = tmp_path / "sql"
    shutil.copytree(sql_dir(), copy)
    monkeypatch.setattr("serve_app.store.migrate.sql_dir", lambda: copy)
    return copy / "migrations"


def test_migrations_are_numbered_without_holes() -> None:
    assert [int(name[:4]) for name in NAMES] == list(range(1, len(NAMES) + 1))


@pytest.mark.parametrize("migration", migrations(), ids=NAMES)
def test_each_migration_begins_with_what_it_is_for(migration: object) -> None:
    assert getattr(migration, "sql", "").startswith("-- ")


async def test_an_empty_database_gets_the_whole_schema_once(empty_database: str) -> None:
    await ensure_database(empty_database)
    await ensure_database(empty_database)
    assert await migrate(empty_database) == NAMES
    assert await migrate(empty_database) == []


async def test_two_programs_may_migrate_at_once(empty_database: str) -> None:
    await asyncio.gather(*(ensure_database(empty_database) for _ in range(3)))
    applied = await asyncio.gather(*(migrate(empty_database) for _ in range(3)))
    assert sorted(applied) == [[], [], NAMES]


async def test_an_edited_migration_is_refused(postgres_dsn: str, own_sql: Path) -> None:
    edited = own_sql / "0002_completions_cache.sql"
    edited.write_text(f"{edited.read_text()}\n-- a late thought\n")
    with pytest.raises(MigrationError, match="0002_completions_cache was edited after it was applied"):
        await migrate(postgres_dsn)


async def test_a_database_newer_than_the_program_is_refused(postgres_dsn: str, own_sql: Path) -> None:
    (own_sql / f"{NAMES[-1]}.sql").unlink()
    with pytest.raises(MigrationError, match="newer than this program"):
        await migrate(postgres_dsn)


async def test_a_failing_migration_leaves_nothing_and_can_be_mended(postgres_dsn: str, own_sql: Path) -> None:
    added = own_sql / "9000_added.sql"
    added.write_text("CREATE TABLE half (a int); SELECT nonsense;")
    with pytest.raises(MigrationError, match="9000_added failed"):
        await migrate(postgres_dsn)
    added.write_text("CREATE TABLE half (a int);")
    assert await migrate(postgres_dsn) == ["9000_added"]


async def test_a_dsn_without_database_is_refused() -> None:
    with pytest.raises(MigrationError, match="names no database"):
        await ensure_database("postgresql://somebody@127.0.0.1:1")


async def test_without_a_server_both_say_so() -> None:
    for attempt in (migrate, ensure_database):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/x is away"):
            await attempt("postgresql://somebody:secret@127.0.0.1:1/x")


async def test_every_named_query_fits_the_schema(postgres_dsn: str) -> None:
    queries = load_queries()
    names = [name for name in queries.available_queries if not name.endswith("_cursor")]
    assert "claim_run" in names
    connection = await asyncpg.connect(postgres_dsn)
    try:
        for name in names:
            await connection.prepare(getattr(queries, name).sql)
    finally:
        await connection.close()


async def test_a_database_without_schema_says_what_to_do(empty_database: str) -> None:
    await ensure_database(empty_database)
    pool = PostgresPool(empty_database)
    try:
        with pytest.raises(Unavailable, match="run `aifactory migrate`"):
            await pool.ping()
        await migrate(empty_database)
        async with asyncio.timeout(30):
            while not await _answers(pool):
                await asyncio.sleep(0.02)
    finally:
        await pool.close()


async def _answers(pool: PostgresPool) -> bool:
    try:
        await pool.ping()
    except Unavailable:
        return False
    return True
