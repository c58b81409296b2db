"""The recorded result of a run as events."""

from collections.abc import AsyncIterator, Iterator

from serve_app.answers import replay
from serve_app.events import EventBody, FinishedEvent, ProgressEvent, RoleEvent, RunEvent, TokenEvent, ToolCallEvent, UsageEvent
from serve_app.ports import RunRecord
from serve_app.runs import RunStatus


def recorded_bodies(row: RunRecord) -> Iterator[EventBody]:
    """The answer or the error of an ended run; the last one is its `finished`."""
    if row.answer is not None:
        yield from replay(row.answer)
        return
    yield FinishedEvent(reason="cancelled" if row.status is RunStatus.CANCELLED else "error", error=row.error)


async def recorded_events(row: RunRecord, *, first: int = 0) -> AsyncIterator[RunEvent]:
    """The same as events, numbered from `first` on. A reader who has events before that has the role too."""
    bodies = (body for body in recorded_bodies(row) if first == 0 or not isinstance(body, RoleEvent))
    for seq, body in enumerate(bodies, first):
        yield RunEvent(row.trace_id, seq, body)


async def untold_end(row: RunRecord, last: RunEvent) -> list[RunEvent]:
    """What the log has of an ended run whose stream stopped at `last`, before its answer: with the numbers that
    whoever tells it will give. Empty when the stream has a part of the answer, or its end.
    """
    if isinstance(last.body, FinishedEvent) or answer_is_out(row, last.body):
        return []
    return [event async for event in recorded_events(row, first=last.seq + 1)]


async def ended_with(events: AsyncIterator[RunEvent], end: list[RunEvent], after: int) -> AsyncIterator[RunEvent]:
    """The events up to where `end` begins, then that; only those with seq > `after`."""
    if after < end[0].seq - 1:
        async for event in events:
            yield event
            if isinstance(event.body, FinishedEvent):
                return
            if event.seq == end[0].seq - 1:
                break
    for event in end:
        if event.seq > after:
            yield event


def answer_is_out(row: RunRecord, last: EventBody) -> bool:
    """Whether a stream that stops at `last` has a part of the ended run's answer."""
    if isinstance(last, ProgressEvent):
        return was_merged(row) and last.step == "synthesize" and last.done == last.of  # told behind the last token
    return isinstance(last, UsageEvent) or is_answer(last)


def was_merged(row: RunRecord) -> bool:
    """Whether a writer merged the answer: it streamed while it was written, any other does once it is recorded."""
    return row.answer is not None and row.answer.debate is not None and row.answer.debate.stop_reason == "synthesized"


def is_answer(body: EventBody) -> bool:
    """Whether this is a part of the answer; a role, progress and the drafts of debaters are none."""
    return isinstance(body, TokenEvent | ToolCallEvent) and body.task is None
