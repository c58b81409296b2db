"""What goes into the lifecycle (Ask) and what comes out of it (Reply)."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from serve_app.errors import NotFound
from serve_app.events import RecallReport, RunEvent
from serve_app.lifecycle.recall import Recalled
from serve_app.lifecycle.replays import recorded_events
from serve_app.ports import RunRecord
from serve_app.runs import CachePolicy, Question, Run


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request: the question, and how the caller wants it handled. timeout_s is the whole run's deadline."""

    trace_id: str  # of the run, if this request starts one
    question: Question
    cache: CachePolicy
    timeout_s: float
    idempotency_key: str | None = None
    traceparent: str | None = None  # of the caller, checked
    key_id: str | None = None  # as Run.key_id


def new_run(ask: Ask) -> Run:
    """The run that this request is, if it starts one."""
    trace_id, req_id, now = ask.trace_id, ask.question.req_id, time.time()
    if ask.idempotency_key is not None:
        key = ask.idempotency_key
    else:
        # A caller that bypasses the cache wants an execution of its own.
        key = f"{req_id}:{trace_id}" if ask.cache.mode == "bypass" else req_id
    return Run(
        trace_id=trace_id,
        req_id=req_id,
        key=key,
        keyed=ask.idempotency_key is not None,
        question=ask.question,
        deadline=now + ask.timeout_s,
        cache=ask.cache,
        started=now,
        traceparent=ask.traceparent,
        key_id=ask.key_id,
    )


@dataclass(slots=True)
class Reply:
    """The answer to a request as it comes. Close it when the client is gone or has all."""

    trace_id: str
    route: str
    model: str
    created: int  # Unix seconds
    cache: RecallReport
    events: AsyncIterator[RunEvent]
    replayed: bool = False
    sources: bool = True  # whether the client is told which documents the answer rests on
    provisional: Recalled | None = None  # shown at once, while the run works on the answer that counts
    traceparent: str | None = None  # of the caller that asked for the run first
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def close(self) -> None:
        """Stop reading. The last reader of an unkeyed run stops the run."""
        await self._stack.aclose()


def reply_to(
    run: Run,
    created: float,
    report: RecallReport,
    events: AsyncIterator[RunEvent],
    stack: AsyncExitStack,
    *,
    provisional: Recalled | None = None,
) -> Reply:
    return Reply(
        trace_id=run.trace_id,
        route=run.route,
        model=run.question.model_id,
        created=int(created),
        cache=report,
        events=events,
        provisional=provisional,
        traceparent=run.traceparent,
        _stack=stack,
    )


def replay_recorded(row: RunRecord, *, shared: bool = False) -> Reply:
    """The recorded result of a key, again. `shared`: of the run that an unkeyed request just missed."""
    recalled = (row.answer.cache if row.answer else None) or RecallReport()
    return Reply(
        trace_id=row.trace_id,
        route=row.route,
        model=row.model,
        created=int(row.created_at),
        cache=RecallReport(result="attached") if shared else recalled,
        events=recorded_events(row),
        replayed=not shared,
        traceparent=row.traceparent,
    )


async def held_or_recorded(events: AsyncIterator[RunEvent], row: RunRecord, after: int) -> AsyncIterator[RunEvent]:
    """The run's own events while they are held; later its recorded result, which only a reader from the start can use."""
    try:
        async for event in events:
            yield event
    except NotFound:
        if after >= 0 or not row.status.terminal:
            raise
        async for event in recorded_events(row):
            yield event
