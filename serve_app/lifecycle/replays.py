"""The recorded result of a run as events."""

from collections.abc import AsyncIterator, Iterator

from serve_app.answers import replay
from serve_app.events import EventBody, FinishedEvent, RunEvent, TokenEvent, ToolCallEvent
from serve_app.ports import RunRecord
from serve_app.runs import RunStatus


def recorded_bodies(row: RunRecord) -> Iterator[EventBody]:
    """The answer or the error of an ended run; the last one is its `finished`."""
    if row.answer is not None:
        yield from replay(row.answer)
        return
    yield FinishedEvent(reason="cancelled" if row.status is RunStatus.CANCELLED else "error", error=row.error)


async def recorded_events(row: RunRecord, *, first: int = 0) -> AsyncIterator[RunEvent]:
    """The same as events, numbered anew from `first`."""
    for seq, body in enumerate(recorded_bodies(row), first):
        yield RunEvent(row.trace_id, seq, body)


def is_answer(body: EventBody) -> bool:
    """Whether this is a part of the answer; a role, progress and the drafts of debaters are none."""
    return isinstance(body, TokenEvent | ToolCallEvent) and body.task is None
