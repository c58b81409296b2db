"""Postgres failures in the caller's words: what means "away" becomes errors.Unavailable."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from serve_app.errors import Unavailable

RETRY_AFTER_S: Final = 1.0

# The server cannot be reached, refuses us, is stopping, is full, or has become read-only. TimeoutError is an OSError.
_AWAY: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
)


def location(dsn: str) -> str:
    """host:port/database of a DSN: what may be shown, without user and password."""
    parts = urlsplit(dsn)
    return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"


def unavailable(message: str) -> Unavailable:
    """A retryable 503 that asks to come back soon."""
    return Unavailable(message, code="store_unavailable", retry_after_s=RETRY_AFTER_S)


@contextmanager
def away_is_unavailable(where: str) -> Iterator[None]:
    """Raise errors.Unavailable for every failure inside the block that lies with the server or the way to it."""
    try:
        yield
    except asyncpg.QueryCanceledError as error:
        raise unavailable(f"Postgres at {where} did not finish a statement in time") from error
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise unavailable(f"the database at {where} lacks part of the schema ({error}): run `aifactory migrate`") from error
    except asyncpg.DeadlockDetectedError as error:
        raise unavailable(f"two writers at Postgres {where} waited for each other, and this one was given up; retry") from error
    except _AWAY as error:
        raise unavailable(f"Postgres at {where} is away: {error or type(error).__name__}") from error
    except asyncpg.InterfaceError as error:
        # asyncpg reports a connection lost before the statement as an InterfaceError, like a wrong use of its API.
        if "clos" not in str(error):
            raise
        raise unavailable(f"Postgres at {where} closed the connection") from error
