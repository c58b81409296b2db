"""Limits on Postgres: each decision on the locked row it changes, so that any number of gateways share them exactly."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from serve_app.errors import AifactoryError, QuotaExhausted, RateLimited, Unavailable
from serve_app.limits import Account, Allowance, Limits, LimitsEntry, Standing, duration, key_subject, project_subject
from serve_app.store.api_keys import check_project, put_limits
from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.queries import load_queries
from serve_app.telemetry import count, logger

_MINUTE_S: Final = 60.0
_PLACE_RETRY_S: Final = 2.0  # nobody knows when a run ends; this is soon


class PostgresLimits:
    """The Meter of the gateways, and the limits themselves. Every method raises errors.Unavailable when Postgres is away."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def enter(self, account: Account) -> Standing:
        """See limits.Meter."""
        key, project = account.subjects
        async with self._pool.shared_lane(), self._pool.connection() as connection:
            rows = [row async for row in self._queries.enter_limits(connection, key=key, project=project)]
        return _standing(rows)

    async def charge(self, account: Account, tokens: int) -> None:
        """See limits.Meter."""
        async with self._pool.connection() as connection:
            await charge(connection, account, tokens)

    @asynccontextmanager
    async def place(self, account: Account, trace_id: str, *, for_s: float) -> AsyncIterator[None]:
        """See limits.Meter."""
        async with self._pool.shared_lane(), self._pool.transaction() as connection:
            await self._queries.take_place(
                connection, trace_id=trace_id, key_id=UUID(account.key_id), project=account.project, for_s=for_s
            )
            await hold_place(connection, account)
        try:
            yield
        finally:
            try:
                async with self._pool.connection() as connection:
                    await self._queries.leave_place(connection, trace_id=trace_id)
            except Unavailable as error:
                logger.warning("a place is free at its deadline only", trace_id=trace_id, error=error.message)

    async def set_of_key(self, key_id: str, limits: Limits) -> bool:
        """Give a key these limits and no others; empty ones remove them. False when no such key is in force."""
        try:
            identifier = UUID(key_id)
        except ValueError:
            return False
        async with self._pool.transaction() as connection:
            if await self._queries.key_in_force(connection, key_id=identifier) is None:
                return False
            await put_limits(connection, key_subject(str(identifier)), limits)
        return True

    async def set_of_project(self, project: str, limits: Limits) -> None:
        """The same for a project, which is made if it is new. Raises ValueError for a name that no project may have."""
        check_project(project)
        async with self._pool.transaction() as connection:
            await self._queries.add_projects(connection, projects=[project])
            await put_limits(connection, project_subject(project), limits)

    async def list(self) -> list[LimitsEntry]:
        """Everything that has limits."""
        async with self._pool.connection() as connection:
            rows = [row async for row in self._queries.list_limits(connection)]
        return [
            LimitsEntry(
                row["subject"],
                Limits(row["requests_per_minute"], row["concurrent_runs"], row["tokens"], row["period"]),
                row["used"],
            )
            for row in rows
        ]


async def hold_place(connection: Connection, account: Account) -> None:
    """Judge the run (or place) that this open transaction has just written.

    The limits' rows are locked until the commit and the count is a statement of its own after that: it sees what every
    transaction that had the lock before has written. Raises errors.RateLimited, which must roll the transaction back.
    """
    queries = load_queries()
    most = {
        row["subject"]: row["concurrent_runs"]
        async for row in queries.hold_concurrency(connection, subjects=sorted(account.subjects))
    }
    if not most:
        return
    running = await queries.count_running(connection, key_id=UUID(account.key_id), project=account.project)
    for subject, now in zip(account.subjects, (running["of_key"], running["of_project"]), strict=True):
        if subject in most and now > most[subject]:
            count("aifactory_limit_refusals_total", limit="concurrency")
            raise RateLimited(
                f"{_whose(subject)} may have {most[subject]} runs at once, and they are under way; retry when one has ended",
                code="concurrency_limit_exceeded",
                retry_after_s=_PLACE_RETRY_S,
            )


async def charge(connection: Connection, account: Account, tokens: int) -> None:
    """Take tokens from the budgets of a key and its project, where they have any."""
    if tokens > 0:
        await load_queries().charge_tokens(connection, subjects=sorted(account.subjects), tokens=tokens)


def _standing(rows: Sequence[Any]) -> Standing:
    requests = [_requests(row) for row in rows if row["requests_per_minute"] is not None and row["full_in_s"] is not None]
    tokens = [
        Allowance(row["tokens"], max(0, row["tokens"] - row["used"]), row["period_left_s"])
        for row in rows
        if row["tokens"] is not None
    ]
    return Standing(
        requests=min(requests, key=lambda allowance: allowance.remaining, default=None),
        tokens=min(tokens, key=lambda allowance: allowance.remaining, default=None),
        refusal=_exhausted(rows) or _too_fast(rows),
    )


def _requests(row: Any) -> Allowance:
    left = int((_MINUTE_S - row["full_in_s"]) / row["step_s"] + 1e-6)
    return Allowance(row["requests_per_minute"], min(row["requests_per_minute"], max(0, left)), row["full_in_s"])


def _exhausted(rows: Sequence[Any]) -> AifactoryError | None:
    for row in rows:
        if row["tokens"] is not None and row["used"] >= row["tokens"]:
            count("aifactory_limit_refusals_total", limit="tokens")
            again = duration(row["period_left_s"])
            return QuotaExhausted(
                f"{_whose(row['subject'])} has used its {row['tokens']} tokens of this period; it gets new ones in {again}"
            )
    return None


def _too_fast(rows: Sequence[Any]) -> AifactoryError | None:
    for row in rows:
        if row["taken"] is False:
            count("aifactory_limit_refusals_total", limit="requests")
            wait_s = max(0.0, row["full_in_s"] + row["step_s"] - _MINUTE_S)
            whose, most = _whose(row["subject"]), row["requests_per_minute"]
            return RateLimited(f"{whose} may ask {most} times a minute; ask again in {duration(wait_s)}", retry_after_s=wait_s)
    return None


def _whose(subject: str) -> str:
    kind, _, name = subject.partition(":")
    return "this API key" if kind == "key" else f"project {name!r}"
