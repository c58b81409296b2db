"""In-memory doubles of the bus. They obey the same contract suite as the real thing, inside one process."""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from serve_app.bus.cancel import CancelListeners
from serve_app.bus.delivery import Delivery
from serve_app.bus.run_log import LogPublisher, RunLog, RunLogs
from serve_app.errors import NotFound, Overloaded, Unavailable
from serve_app.events import RunEvent
from serve_app.ports import RunPublisher
from serve_app.runs import Run


class InMemoryEventBus:
    """EventBus without a server: every run lives here."""

    def __init__(self, *, subscriber_buffer: int = 8192, silence_s: float = 3600, logs: RunLogs | None = None) -> None:
        self._buffer = subscriber_buffer
        self._silence_s = silence_s
        self._logs = logs or RunLogs()
        self._cancels = CancelListeners()
        self._opened = asyncio.Event()

    async def ping(self) -> None:
        """Always well."""

    @property
    def resumable(self) -> bool:
        """See EventBus: there is one process only."""
        return True

    async def open_run(self, trace_id: str, *, resume: bool = False) -> RunPublisher:
        """See EventBus."""
        log = self._logs.find(trace_id) if resume else None
        if log is None and resume and self._logs.ended_here(trace_id):
            log = RunLog(trace_id, finished=True)
        publisher = LogPublisher(self._logs, log or self._logs.open(trace_id))
        self._opened.set()
        self._opened = asyncio.Event()
        return publisher

    @asynccontextmanager
    async def subscribe(self, trace_id: str, *, after: int = -1) -> AsyncIterator[AsyncIterator[RunEvent]]:
        """See EventBus."""
        async with aclosing(self._read(trace_id, after)) as events:
            yield events

    async def _read(self, trace_id: str, after: int) -> AsyncGenerator[RunEvent, None]:
        log = self._logs.find(trace_id)
        while log is None:
            if self._logs.ended_here(trace_id) or after >= 0:
                raise NotFound(f"events of run {trace_id} are no longer held")
            opened = self._opened
            try:
                async with asyncio.timeout(self._silence_s):
                    await opened.wait()
            except TimeoutError:
                raise Unavailable(f"run {trace_id} has published nothing for {self._silence_s:g} s") from None
            log = self._logs.find(trace_id)
        async with aclosing(log.read(after, slack=self._buffer, silence_s=self._silence_s)) as events:
            async for event in events:
                yield event

    async def last_event(self, trace_id: str) -> RunEvent | None:
        """See EventBus."""
        log = self._logs.find(trace_id)
        return log.last if log is not None else None

    async def publish_cancel(self, trace_id: str, reason: str) -> None:
        """See EventBus."""
        self._cancels.tell(trace_id, CancelListeners.encode(reason))

    async def on_cancel(self, callback: Callable[[str, str], None]) -> None:
        """See EventBus."""
        self._cancels.add(callback)


class InMemoryRunQueue:
    """RunQueue and WorkQueue without a server, with redelivery."""

    def __init__(self, *, ack_wait_s: float = 15, max_deliver: int = 4, max_pending: int = 10_000) -> None:
        self.ack_wait_s = ack_wait_s
        self._max_deliver = max_deliver
        self._max_pending = max_pending
        self._order = itertools.count()
        self._due: list[tuple[float, int, str]] = []  # a heap: when, order of arrival, trace_id
        self._runs: dict[str, tuple[Run, int]] = {}  # not done yet, with the number of deliveries
        self._versions: dict[str, int] = {}  # the heap entry that counts, by run
        self._changed = asyncio.Event()

    async def ping(self) -> None:
        """Always well."""

    async def submit(self, run: Run) -> None:
        """See RunQueue."""
        if run.trace_id in self._runs:
            return
        if len(self._runs) >= self._max_pending:
            raise Overloaded("the queue of workflow runs is full; retry later", retry_after_s=5)
        self._runs[run.trace_id] = (run, 0)
        self.schedule(run.trace_id, 0)

    async def pending(self) -> int:
        """See RunQueue."""
        return sum(1 for _, count in self._runs.values() if count == 0)

    async def backlog(self) -> int:
        """See RunQueue."""
        return len(self._runs)

    def schedule(self, trace_id: str, delay_s: float) -> None:
        """Deliver the run after `delay_s`, instead of when it was due before."""
        if trace_id not in self._runs:
            return
        order = next(self._order)
        self._versions[trace_id] = order
        heapq.heappush(self._due, (time.monotonic() + delay_s, order, trace_id))
        self._changed.set()

    def forget(self, trace_id: str) -> None:
        """Never deliver the run again."""
        self._runs.pop(trace_id, None)
        self._versions.pop(trace_id, None)

    async def deliveries(self, *, limit: int) -> AsyncGenerator[Delivery, None]:
        """See WorkQueue."""
        slots = asyncio.Semaphore(limit)
        while True:
            await slots.acquire()
            trace_id = await self._next_due()
            run, count = self._runs[trace_id]
            self._runs[trace_id] = (run, count + 1)
            self.schedule(trace_id, self.ack_wait_s)
            last = count + 1 >= self._max_deliver
            yield MemoryDelivery(self, run, delivery_count=count + 1, last=last, free_slot=slots.release)

    async def _next_due(self) -> str:
        while True:
            wait_s: float | None = None
            while self._due:
                due, order, trace_id = self._due[0]
                if self._versions.get(trace_id) == order and due > time.monotonic():
                    wait_s = due - time.monotonic()
                    break
                heapq.heappop(self._due)
                if self._versions.get(trace_id) != order:
                    continue
                if self._runs[trace_id][1] < self._max_deliver:
                    return trace_id
                self.forget(trace_id)
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue


class MemoryDelivery(Delivery):
    """A delivery of InMemoryRunQueue."""

    def __init__(
        self, queue: InMemoryRunQueue, run: Run, *, delivery_count: int, last: bool, free_slot: Callable[[], None]
    ) -> None:
        super().__init__(run, delivery_count=delivery_count, last=last, free_slot=free_slot)
        self._queue = queue

    def _beat_interval_s(self) -> float:
        return self._queue.ack_wait_s / 3

    async def _say_in_progress(self) -> None:
        self._queue.schedule(self.run.trace_id, self._queue.ack_wait_s)

    async def _done(self) -> None:
        self._queue.forget(self.run.trace_id)

    async def _retry(self, delay_s: float) -> None:
        self._queue.schedule(self.run.trace_id, delay_s)

    async def _reject(self) -> None:
        self._queue.forget(self.run.trace_id)
