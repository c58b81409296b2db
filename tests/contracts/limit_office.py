"""Accounts with limits, and the meters and logs of two gateways on one Postgres."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from serve_app.events import ChoiceEnd, RecallReport, Usage
from serve_app.limits import Account, Limits
from serve_app.runs import Answer, Outcome, Question, Run, RunStatus, new_trace_id
from serve_app.store.api_keys import ApiKeys
from serve_app.store.limits import PostgresLimits
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore

LEASE_S = 60.0


class Office:
    """Keys with limits, and the meters and logs of two gateways."""

    def __init__(self, pools: list[PostgresPool]) -> None:
        self.pools = pools
        self.keys = ApiKeys(pools[0])
        self.meters = [PostgresLimits(pool) for pool in pools]
        self.meter = self.meters[0]
        self.stores = [PostgresRunStore(pool) for pool in pools]

    async def account(self, project: str = "blue", **limits: Any) -> Account:
        owner = await self.keys.check(await self.keys.create(project, limits=Limits(**limits)))
        assert owner is not None
        return Account(owner.key_id, project)

    async def used(self, subject: str) -> int:
        return next(entry.used for entry in await self.meter.list() if entry.subject == subject)

    async def sql(self, statement: str, *values: Any) -> Any:
        async with self.pools[0].connection() as connection:
            return await connection.fetchval(statement, *values)


@asynccontextmanager
async def open_office(postgres_dsn: str, *, timeout_s: float = 30.0) -> AsyncIterator[Office]:
    """An office with two gateways."""
    async with AsyncExitStack() as stack:
        pools = [PostgresPool(postgres_dsn, size=8, timeout_s=timeout_s) for _ in range(2)]
        for pool in pools:
            stack.push_async_callback(pool.close)
        yield Office(pools)


def a_run(account: Account, text: str | None = None) -> Run:
    question = Question(account.project, "direct", "m", None, [{"role": "user", "content": text or new_trace_id()}])
    trace_id = new_trace_id()
    return Run(trace_id, question.req_id, question.req_id, False, question, time.time() + 60, key_id=account.key_id)


def outcome_of(tokens: int, *, status: RunStatus = RunStatus.SUCCEEDED, cache: str = "miss") -> Outcome:
    usage = Usage(prompt_tokens=1, completion_tokens=tokens - 1, total_tokens=tokens)
    if status is not RunStatus.SUCCEEDED:
        return Outcome(status, "cancelled" if status is RunStatus.CANCELLED else "error", usage, error={"message": "x"})
    report = RecallReport(result=cache)
    ends = (ChoiceEnd(finish_reason="stop"),)
    answer = Answer("m", ({"role": "assistant", "content": "x"},), ends, usage, cache=report)
    return Outcome(status, "stop", usage, answer)
