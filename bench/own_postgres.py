"""A Postgres that a measurement has for itself, gone afterwards."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from serve_app.local.ports import choose_port
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.store.migrate import migrate
from serve_app.store.pool import PostgresPool


@asynccontextmanager
async def own_pool(*, timeout_s: float = 5.0) -> AsyncIterator[PostgresPool]:
    """A pool on a fresh, migrated database of an embedded server. `timeout_s`: of each statement."""
    with _own_server() as dsn:
        await migrate(dsn)
        pool = PostgresPool(dsn, timeout_s=timeout_s)
        try:
            yield pool
        finally:
            await pool.close()


@contextmanager
def _own_server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="aifactory-bench-"))
    folder.chmod(0o711)  # as root the server runs as a user who may not enter a private folder
    server = EmbeddedPostgres(folder / "postgres", choose_port(0, set()), folder / "log" / "postgres.log")
    try:
        process = server.start()
        try:
            yield server.dsn()
        finally:
            server.stop(process)
    finally:
        shutil.rmtree(folder)
