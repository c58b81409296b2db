"""The recorded result of a run as events."""

from collections.abc import AsyncIterator

from serve_app.answers import replay
from serve_app.events import FinishedEvent, RunEvent
from serve_app.ports import RunRecord
from serve_app.runs import RunStatus


async def recorded_events(row: RunRecord) -> AsyncIterator[RunEvent]:
    """The answer or the error of an ended run, numbered anew from 0."""
    if row.answer is None:
        reason = "cancelled" if row.status is RunStatus.CANCELLED else "error"
        yield RunEvent(row.trace_id, 0, FinishedEvent(reason=reason, error=row.error))
        return
    for seq, body in enumerate(replay(row.answer)):
        yield RunEvent(row.trace_id, seq, body)
