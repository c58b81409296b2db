"""The end of a run: record the outcome, then say `finished`, once."""

import time
from collections.abc import Sequence
from dataclasses import replace

from serve_app.answers import finished_event
from serve_app.errors import Unavailable
from serve_app.events import EventBody, RecallReport
from serve_app.ports import RunPublisher, RunStore
from serve_app.runs import Outcome, Run
from serve_app.spans import ended
from serve_app.telemetry import count, logger, observe


async def settle(
    store: RunStore,
    publisher: RunPublisher,
    run: Run,
    outcome: Outcome,
    *,
    closing: Sequence[EventBody] = (),
    dagster_run_id: str | None = None,
) -> bool:
    """Commit the outcome and the cache entry in one transaction; only then publish `closing` and the one `finished`.

    False when the run was not ours any more (a later attempt owns it, or it has ended): nothing is published, and
    readers in this process end with an error that lets them read on where the run has gone.
    Raises errors.Unavailable when the database is away: then nothing is recorded and nothing published.
    `dagster_run_id`: which Dagster run came to this end, for the trace.
    """
    if outcome.answer is not None and outcome.answer.cache is None:
        outcome = replace(outcome, answer=replace(outcome.answer, cache=not_recalled(run)))
    if not await store.settle(run, outcome) and not await _was_ours(store, run, outcome):
        logger.warning("outcome of run dropped: another attempt owns it", status=outcome.status, attempt=run.attempt)
        publisher.let_go()
        return False
    for body in closing:
        await publisher.emit(body)
    await publisher.emit(finished_event(outcome))
    ended(run, outcome, dagster_run_id=dagster_run_id)
    if run.route == "workflow":
        await note_told(store, publisher)  # its message may be delivered again
    count("aifactory_runs_total", route=run.route, outcome=outcome.status.value)
    observe("aifactory_run_seconds", time.time() - run.started, route=run.route)
    logger.info(
        "run settled",
        status=outcome.status.value,
        reason=outcome.reason,
        route=run.route,
        seconds=round(time.time() - run.started, 3),
        completion_tokens=outcome.usage.completion_tokens,
        error_code=(outcome.error or {}).get("code"),
    )
    return True


async def note_told(store: RunStore, publisher: RunPublisher) -> None:
    """Remember that the run's end was said, if NATS has it."""
    try:
        if await publisher.delivered():
            await store.mark_told(publisher.trace_id)
    except Unavailable as error:
        logger.warning("not noted that the run's end was said", error=error.message)


async def _was_ours(store: RunStore, run: Run, outcome: Outcome) -> bool:
    """Whether the row ended as we say by our own hand: the commit went through, only its reply was lost."""
    row = await store.find(run.trace_id)
    return row is not None and row.attempt == run.attempt and row.status is outcome.status


async def finish_unrecorded(publisher: RunPublisher, run: Run, outcome: Outcome) -> None:
    """Say `finished` for a run that the log never knew, or cannot take: the database is away."""
    logger.warning("run ends without a record: the database is away", status=outcome.status.value, route=run.route)
    await publisher.emit(finished_event(outcome))
    ended(run, outcome, recorded=False)
    count("aifactory_runs_total", route=run.route, outcome=f"{outcome.status.value}_unrecorded")


def not_recalled(run: Run) -> RecallReport:
    """What the cache had to do with an answer that a model gave."""
    return RecallReport(result="bypass" if run.cache.mode == "bypass" else "miss")
