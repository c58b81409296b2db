"""Where the SQL lives, and the named queries in it as functions.

`sql/queries/*.sql` is read by aiosql: `-- name: claim_run(...)^` becomes `load_queries().claim_run(connection, ...)`.
"""

from functools import cache
from pathlib import Path
from typing import Any

import aiosql


def sql_dir() -> Path:
    """The folder with `migrations` and `queries`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "sql", package.parent / "sql"):
        if (folder / "migrations").is_dir():
            return folder
    raise FileNotFoundError(f"no SQL files under {package} or {package.parent}: the installation is incomplete, repeat it")


@cache
def load_queries() -> Any:
    """Every named query, as a coroutine function that takes a connection first and its parameters by name."""
    return aiosql.from_path(sql_dir() / "queries", "asyncpg")
