"""What a worker gets from the queue."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from serve_app.errors import Unavailable
from serve_app.ports import RunQueue
from serve_app.runs import Run
from serve_app.telemetry import logger


class Delivery(ABC):
    """One run handed to this worker. End it with exactly one of done, retry or reject: that frees its slot.

    `delivery_count` starts at 1; `last` says that it will not be delivered again whatever happens to this worker.
    """

    def __init__(self, run: Run, *, delivery_count: int, last: bool, free_slot: Callable[[], None]) -> None:
        self.run = run
        self.delivery_count = delivery_count
        self.last = last
        self._free_slot = free_slot
        self._ended = False

    @asynccontextmanager
    async def heartbeat(self) -> AsyncIterator[None]:
        """While inside, the queue is told that the run is being worked on."""
        # A task and not a TaskGroup: an error of the body must leave as it is. It ends with the block.
        beating = asyncio.get_running_loop().create_task(self._beat(), name=f"heartbeat {self.run.trace_id}")
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    async def done(self) -> None:
        """The run needs no further delivery. Raises Unavailable when the queue did not confirm: it may come again."""
        self._end()
        await self._done()

    async def retry(self, delay_s: float = 0.0) -> None:
        """Deliver the run again after `delay_s`, up to max_deliver times. Raises Unavailable."""
        self._end()
        await self._retry(delay_s)

    async def reject(self) -> None:
        """Never deliver the run again. Raises Unavailable."""
        self._end()
        await self._reject()

    def _end(self) -> None:
        if self._ended:
            raise ValueError(f"the delivery of run {self.run.trace_id} has ended already")
        self._ended = True
        self._free_slot()

    async def _beat(self) -> None:
        interval_s = self._beat_interval_s()
        if interval_s is None:
            return
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self._say_in_progress()
            except Unavailable as error:
                logger.bind(trace_id=self.run.trace_id).warning("heartbeat failed; another worker may get this run: {}", error)

    @abstractmethod
    def _beat_interval_s(self) -> float | None: ...

    @abstractmethod
    async def _say_in_progress(self) -> None: ...

    @abstractmethod
    async def _done(self) -> None: ...

    @abstractmethod
    async def _retry(self, delay_s: float) -> None: ...

    @abstractmethod
    async def _reject(self) -> None: ...


class WorkQueue(RunQueue, Protocol):
    """The queue as workers see it."""

    def deliveries(self, *, limit: int) -> AsyncGenerator[Delivery, None]:
        """Runs for this worker, one at a time, at most `limit` of them not ended. Never ends by itself.

        NATS being away is waited out. A message that is no run is rejected and logged. Close it with
        contextlib.aclosing, so that this worker leaves the queue at once.
        """
        ...
