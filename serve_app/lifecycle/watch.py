"""Watching a run for its reader: silence is never taken for patience without asking the log.

Whatever breaks between the one who executes a run and the one who reads it (a dead gateway, a lost `finished`, NATS
gone for a while), the reader gets an honest end within about a third of a lease.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from serve_app.errors import DeadlineExceeded, Unavailable
from serve_app.events import FinishedEvent, RunEvent
from serve_app.lifecycle.ahead import ReadAhead
from serve_app.lifecycle.replays import is_answer, recorded_events, was_merged
from serve_app.ports import RunRecord, RunStore
from serve_app.telemetry import logger

_POLL_S = 0.5


class Watch:
    """How long a reader waits: until its own `deadline` (Unix seconds), asking the log after `check_s` of silence.

    `recorded` false: the log does not know the run, so it is not asked. `after`: the last event that the reader has
    already; `seen`: part of the answer is among those.
    """

    def __init__(
        self, store: RunStore, trace_id: str, *, deadline: float, check_s: float, recorded: bool, after: int, seen: bool
    ) -> None:
        self._store = store
        self._trace_id = trace_id
        self._deadline = deadline
        self._check_s = check_s
        self._recorded = recorded
        self._seen = seen
        self._resumed = after >= 0
        self._lost = False
        self._last_seq = after
        self._ahead: ReadAhead[RunEvent] | None = None

    async def events(self, events: AsyncIterator[RunEvent]) -> AsyncIterator[RunEvent]:
        """The same events, and an end in any case. Raises DeadlineExceeded or Unavailable where the run gives none."""
        self._ahead = ahead = ReadAhead(events)
        while True:
            patience_s = min(self._check_s, max(0.0, self._deadline - time.time()))
            try:
                event = await _next(ahead, patience_s)
            except Unavailable:
                if self._seen or not self._recorded:
                    raise
                # The events cannot be had (bus=core, or NATS lost them), but the run goes on and will be recorded.
                async for event in self._recorded_later():
                    yield event
                return
            if event is not None:
                self._last_seq = event.seq
                self._seen, self._lost = self._seen or is_answer(event.body), False
                yield event
                if isinstance(event.body, FinishedEvent):
                    return
                continue
            if time.time() >= self._deadline:
                raise DeadlineExceeded("the run did not finish within the time that this request gave it (x_timeout_s)")
            ended = await self._ask_the_log()
            if ended is not None:
                async for event in recorded_events(ended, first=self._last_seq + 1):
                    yield event
                return

    async def close(self) -> None:
        """Stop waiting for the next event. To be called before the subscription is closed."""
        if self._ahead is not None:
            await self._ahead.close()

    async def _recorded_later(self) -> AsyncIterator[RunEvent]:
        """The result, once the log has it. Raises DeadlineExceeded or Unavailable."""
        while time.time() < self._deadline:
            row = await self._store.find(self._trace_id)
            if row is not None and row.status.terminal and not self._may_have_part_of(row):
                async for event in recorded_events(row, first=self._last_seq + 1):
                    yield event
                return
            if row is None or row.status.terminal or row.lease_until < time.time():
                raise Unavailable("the run was lost before its end reached us; send the request again", retry_after_s=1)
            await asyncio.sleep(min(_POLL_S, self._check_s))
        raise DeadlineExceeded("the run did not finish within the time that this request gave it (x_timeout_s)")

    async def _ask_the_log(self) -> RunRecord | None:
        """The run's row when it ended without telling us; None to wait on. Raises Unavailable when nobody keeps the run."""
        if not self._recorded:
            return None
        try:
            row = await self._store.find(self._trace_id)
        except Unavailable as error:
            logger.warning("a silent run cannot be looked up", trace_id=self._trace_id, error=error.message)
            return None
        gone = row is None or (row.status.terminal or row.lease_until < time.time())
        if not gone:
            self._lost = False
            return None
        if not self._lost:
            self._lost = True  # its last events may be on their way: look once more
            return None
        if row is not None and row.status.terminal and (row.answer is None or not self._may_have_part_of(row)):
            return row
        # Part of the answer was read, and what came after it is lost: an end here would make it look whole.
        raise Unavailable("the run was lost before its end reached us; send the request again", retry_after_s=1)

    def _may_have_part_of(self, row: RunRecord) -> bool:
        # A debate answers once it has ended, unless a writer merged the answer: who resumes may have read that.
        return self._seen or (self._resumed and was_merged(row))


async def _next(events: ReadAhead[RunEvent], patience_s: float) -> RunEvent | None:
    try:
        return await events.next(patience_s)
    except StopAsyncIteration:
        raise Unavailable("the run's events stopped before it was finished; send the request again", retry_after_s=1) from None
