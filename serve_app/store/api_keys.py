"""Who may call: API keys, of which only the sha256 is kept."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from serve_app.limits import Limits, key_subject
from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.queries import load_queries

KEY_PREFIX: Final = "aif-"
_SHOWN: Final = 10  # characters of a key that listings show
_MAX_KEY_LENGTH: Final = 256
_PROJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """Whom a key stands for. `projects` are all that it may use, its own `project` first.

    `limited`: which of the key and these projects have limits, as limits name them.
    """

    project: str
    projects: tuple[str, ...]
    key_id: str
    limited: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key in a listing. Times are Unix seconds; `revoked_at` is None for a key in force.

    `old_until`: until when the key before the last rotation is still good, if it is.
    """

    key_id: str
    prefix: str
    project: str
    projects: tuple[str, ...]
    created_at: float
    revoked_at: float | None
    rotated_at: float | None = None
    old_until: float | None = None


class ApiKeys:
    """The api_keys table. Every method raises errors.Unavailable when the database is away."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def create(self, project: str, *, projects: Sequence[str] = (), limits: Limits | None = None) -> str:
        """Make a key for `project` that may also use `projects`, and return it: it cannot be shown again.

        Projects that do not exist are created. Raises ValueError for a name that no project may have.
        """
        usable = list(dict.fromkeys([project, *projects]))
        for name in usable:
            check_project(name)
        key = _new_key()
        async with self._pool.transaction() as connection:
            await self._queries.add_projects(connection, projects=sorted(usable))
            key_id = await self._queries.add_key(
                connection, key_hash=_digest(key), prefix=key[:_SHOWN], project=project, projects=usable
            )
            if limits is not None:
                await put_limits(connection, key_subject(str(key_id)), limits)
        return key

    async def check(self, key: str) -> KeyOwner | None:
        """The owner of a key in force, else None."""
        if not key.startswith(KEY_PREFIX) or len(key) > _MAX_KEY_LENGTH:
            return None
        async with self._pool.connection() as connection:
            row = await self._queries.key_owner(connection, key_hash=_digest(key))
        if row is None:
            return None
        return KeyOwner(row["project"], tuple(row["projects"]), str(row["key_id"]), frozenset(row["limited"]))

    async def list(self, project: str | None = None) -> list[KeyEntry]:
        """Keys of one project or of all, oldest first, revoked ones included."""
        async with self._pool.connection() as connection:
            rows = [row async for row in self._queries.list_keys(connection, project=project)]
        return [
            KeyEntry(
                key_id=str(row["key_id"]),
                prefix=row["prefix"],
                project=row["project"],
                projects=tuple(row["projects"]),
                created_at=row["created_at"].timestamp(),
                revoked_at=_seconds(row["revoked_at"]),
                rotated_at=_seconds(row["rotated_at"]),
                old_until=_seconds(row["old_until"]),
            )
            for row in rows
        ]

    async def revoke(self, key_id: str) -> bool:
        """Put a key out of force for good, and what is left of those it replaced. False when there is no such key in force."""
        try:
            identifier = UUID(key_id)
        except ValueError:
            return False
        async with self._pool.connection() as connection:
            return await self._queries.revoke_key(connection, key_id=identifier) is not None

    async def rotate(self, key_id: str, *, grace_s: float) -> str | None:
        """Replace a key by a new one, which is returned; same id, projects, limits and use. None: no such key in force.

        The one before stays good for `grace_s`; of those before that, none stays good for longer.
        """
        try:
            identifier = UUID(key_id)
        except ValueError:
            return None
        key = _new_key()
        async with self._pool.connection() as connection:
            found = await self._queries.rotate_key(
                connection, key_id=identifier, key_hash=_digest(key), prefix=key[:_SHOWN], grace_s=grace_s
            )
        return None if found is None else key


def check_project(name: str) -> None:
    """Raise ValueError for a name that no project may have."""
    if not _PROJECT.fullmatch(name):
        allowed = "up to 64 letters, digits, '.', '_', '-', the first a letter or digit"
        raise ValueError(f"{name!r} cannot name a project: use {allowed}")


async def create_key(dsn: str, project: str, *, projects: Sequence[str] = ()) -> str:
    """ApiKeys.create for callers that hold no pool, such as the command line."""
    pool = PostgresPool(dsn, size=1, application_name="aifactory keys")
    try:
        return await ApiKeys(pool).create(project, projects=projects)
    finally:
        await pool.close()


async def put_limits(connection: Connection, subject: str, limits: Limits) -> None:
    """Store the limits of a subject, or remove them when they are empty."""
    queries = load_queries()
    if limits.empty:
        await queries.drop_limits(connection, subject=subject)
        return
    await queries.set_limits(
        connection,
        subject=subject,
        requests_per_minute=limits.requests_per_minute,
        concurrent_runs=limits.concurrent_runs,
        tokens=limits.tokens,
        period=limits.period,
    )


def _new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def _seconds(time: datetime | None) -> float | None:
    return time.timestamp() if time else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
