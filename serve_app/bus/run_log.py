"""The events of runs that live in this process, kept in memory for readers in this process."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from serve_app.errors import Overloaded, Unavailable
from serve_app.events import EventBody, FinishedEvent, RunEvent

_REMEMBERED_ENDS: Final = 10_000
_YIELD_EVERY: Final = 64  # events that a publisher may emit before readers get a turn


class RunLog:
    """The events of one run from seq `base` on."""

    def __init__(self, trace_id: str, base: int = 0, *, finished: bool = False) -> None:
        self.trace_id = trace_id
        self.base = base
        self.finished_at: float | None = time.monotonic() if finished else None
        self.last_used = time.monotonic()
        self._abandoned = False
        self._events: list[RunEvent] = []
        self._changed = asyncio.Event()

    @property
    def size(self) -> int:
        return len(self._events)

    def __bool__(self) -> bool:
        return True  # a log without events yet is a log: `find` must not take it for none

    @property
    def last(self) -> RunEvent | None:
        return self._events[-1] if self._events else None

    @property
    def next_seq(self) -> int:
        return self.base + len(self._events)

    def append(self, body: EventBody) -> RunEvent:
        """Number the body and keep it. Raises ValueError after `finished`."""
        if self.finished_at is not None:
            raise ValueError(f"run {self.trace_id} has finished; it cannot publish another {body.type!r} event")
        if self._abandoned:
            raise ValueError(f"run {self.trace_id} goes on elsewhere; open it again with resume=True")
        event = RunEvent(self.trace_id, self.next_seq, body)
        self.last_used = time.monotonic()
        self._events.append(event)
        if isinstance(body, FinishedEvent):
            self.finished_at = time.monotonic()
        self._wake_readers()
        return event

    def abandon(self) -> None:
        """No event comes any more, though the run has not finished."""
        self._abandoned = True
        self._wake_readers()

    def forget_before(self, seq: int) -> None:
        """Drop the events below `seq`."""
        dropped = max(0, min(seq, self.next_seq) - self.base)
        del self._events[:dropped]
        self.base += dropped

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, after: int, *, slack: int, silence_s: float) -> AsyncGenerator[RunEvent, None]:
        """Events with seq > `after`, up to `finished`.

        Raises Overloaded when more than `slack` events come while the reader stands still (what was there when it
        joined does not count), Unavailable when the run says nothing for `silence_s`.
        """
        cursor, joined = after + 1, self.next_seq
        while True:
            changed = self._changed
            while cursor < self.next_seq:
                behind = self.next_seq - max(cursor, joined)
                if cursor < self.base or behind > slack:
                    raise too_slow(self.trace_id, slack)
                event = self._events[cursor - self.base]
                cursor += 1
                yield event
                if isinstance(event.body, FinishedEvent):
                    return
                changed = self._changed
            if self.finished_at is not None:
                return
            if self._abandoned:
                raise Unavailable(f"run {self.trace_id} goes on in another process; read on after the last event you got")
            try:
                async with asyncio.timeout(silence_s):
                    await changed.wait()
            except TimeoutError:
                raise silent(self.trace_id, silence_s) from None


class RunLogs:
    """The logs of this process, bounded: finished runs go first, then the oldest events of the run that grows."""

    def __init__(
        self,
        *,
        max_runs: int = 4096,
        max_events: int = 200_000,
        max_run_events: int = 65_536,
        keep_s: float = 60,
        abandoned_s: float = 3600,
    ) -> None:
        self._max_runs = max_runs
        self._max_events = max_events
        self._max_run_events = max_run_events
        self._keep_s = keep_s
        self._abandoned_s = abandoned_s
        self._open: dict[str, RunLog] = {}
        self._finished: OrderedDict[str, RunLog] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._total = 0

    def find(self, trace_id: str) -> RunLog | None:
        """The log of a run that lives here, or finished here a short while ago."""
        self._expire()
        return self._open.get(trace_id) or self._finished.get(trace_id)

    def ended_here(self, trace_id: str) -> bool:
        """Whether the run finished in this process, also when its log has gone."""
        return trace_id in self._ended

    def open(self, trace_id: str, base: int = 0) -> RunLog:
        """A new log. Raises ValueError for a known run, Overloaded when too many are open."""
        if self.find(trace_id) is not None or self.ended_here(trace_id):
            raise ValueError(f"run {trace_id} is known in this process already; open it with resume=True, or use a new trace_id")
        if len(self._open) >= self._max_runs and not self._forget_abandoned():
            raise Overloaded(f"{self._max_runs} runs are open in this process; retry later")
        log = RunLog(trace_id, base)
        self._open[trace_id] = log
        return log

    def append(self, log: RunLog, body: EventBody) -> RunEvent:
        """Append to a log of ours and keep the bounds."""
        before = log.size
        event = log.append(body)
        if log.size > self._max_run_events:
            # In steps, because dropping the head of a list costs its length.
            log.forget_before(log.base + self._max_run_events // 16 + 1)
        self._total += log.size - before
        if log.finished_at is not None:
            self._open.pop(log.trace_id, None)
            self._finished[log.trace_id] = log
            self._ended[log.trace_id] = None
            if len(self._ended) > _REMEMBERED_ENDS:
                self._ended.popitem(last=False)
        self._expire()
        while self._total > self._max_events and self._finished:
            self._drop_oldest()
        if self._total > self._max_events:
            before = log.size
            log.forget_before(log.base + self._total - self._max_events)
            self._total -= before - log.size
        return event

    def forget(self, trace_id: str) -> None:
        """Drop the log of a run that goes on elsewhere. Readers that are on it end with an error."""
        log = self._open.pop(trace_id, None)
        if log is not None:
            self._total -= log.size
            log.abandon()

    def _forget_abandoned(self) -> bool:
        # A handler that failed leaves its run open here while another worker finishes it.
        oldest_allowed = time.monotonic() - self._abandoned_s
        abandoned = [name for name, log in self._open.items() if log.last_used < oldest_allowed]
        for trace_id in abandoned:
            self.forget(trace_id)
        return bool(abandoned)

    def _expire(self) -> None:
        oldest_allowed = time.monotonic() - self._keep_s
        while self._finished:
            first = next(iter(self._finished.values()))
            if first.finished_at is None or (first.finished_at > oldest_allowed and len(self._finished) <= self._max_runs):
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, log = self._finished.popitem(last=False)
        self._total -= log.size


class LogPublisher:
    """A RunPublisher: into the log first, then to `send`."""

    def __init__(
        self,
        logs: RunLogs,
        log: RunLog,
        send: Callable[[RunEvent], Awaitable[None]] | None = None,
        sent: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._logs = logs
        self._log = log
        self._send = send
        self._sent = sent

    @property
    def trace_id(self) -> str:
        return self._log.trace_id

    async def emit(self, body: EventBody) -> RunEvent:
        """Number, keep and send the body. Raises ValueError after `finished`."""
        # Nothing may suspend between the number and the wire, or two emits could change places there.
        event = self._logs.append(self._log, body)
        if self._send is not None:
            await self._send(event)
        if event.seq % _YIELD_EVERY == _YIELD_EVERY - 1:
            await asyncio.sleep(0)
        return event

    async def delivered(self) -> bool:
        """See RunPublisher."""
        return self._sent is None or await self._sent()

    @property
    def finished(self) -> bool:
        return self._log.finished_at is not None

    def let_go(self) -> None:
        """See RunPublisher. Does nothing after `finished`."""
        if self.finished:
            return
        if self._logs.find(self._log.trace_id) is self._log:
            self._logs.forget(self._log.trace_id)
        self._log.abandon()


def too_slow(trace_id: str, slack: int) -> Overloaded:
    """The error of a reader that fell too far behind."""
    return Overloaded(f"this reader of run {trace_id} fell more than {slack} events behind; read on after the last event it got")


def silent(trace_id: str, silence_s: float) -> Unavailable:
    """The error of a reader whose run says nothing."""
    return Unavailable(f"run {trace_id} has published nothing for {silence_s:g} s")
