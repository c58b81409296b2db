"""Who reads a run, here and on other gateways. When the last reader of an unkeyed run leaves, the run is stopped."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from serve_app.errors import Unavailable
from serve_app.events import FinishedEvent, RunEvent
from serve_app.ports import Audience
from serve_app.tasks import TaskOwner
from serve_app.telemetry import logger


@dataclass(slots=True)
class Reading:
    """One reader's stay. `ended` once it has seen the run's end: leaving then stops nothing."""

    ended: bool = False

    async def until_end(self, events: AsyncIterator[RunEvent]) -> AsyncIterator[RunEvent]:
        """The same events; notes the end as it passes."""
        async for event in events:
            if isinstance(event.body, FinishedEvent):
                self.ended = True
            yield event


@dataclass(slots=True)
class _Seats:
    taken: int = 0
    attendance: AsyncExitStack = field(default_factory=AsyncExitStack)


class Readers:
    """Counts the readers of each run in this process and shows other gateways that there are some."""

    def __init__(self, *, audience: Audience, stop: Callable[[str, str], Awaitable[None]], tasks: TaskOwner) -> None:
        """`stop(trace_id, reason)` stops a run wherever it executes; it may raise errors.Unavailable."""
        self._audience = audience
        self._stop = stop
        self._tasks = tasks
        self._seats: dict[str, _Seats] = {}

    def count(self, trace_id: str) -> int:
        """Readers of the run in this process."""
        seats = self._seats.get(trace_id)
        return seats.taken if seats else 0

    def reading(self, trace_id: str, *, keyed: bool) -> AbstractAsyncContextManager[Reading]:
        """Take a seat. The last to leave an unkeyed run that has not ended stops it, wherever it executes."""
        return self._reading(trace_id, keyed)

    @asynccontextmanager
    async def _reading(self, trace_id: str, keyed: bool) -> AsyncIterator[Reading]:
        seats = self._seats.setdefault(trace_id, _Seats())
        seats.taken += 1
        reading = Reading()
        try:
            if seats.taken == 1:
                await seats.attendance.enter_async_context(self._audience.attend(trace_id))
            yield reading
        finally:
            seats.taken -= 1
            if seats.taken == 0:
                del self._seats[trace_id]
                # In a task of its own: the reader may be leaving because it is being cancelled. After close() the
                # process ends, and its runs with it.
                if not self._tasks.closed:
                    self._tasks.spawn(self._all_left(trace_id, seats, stop=not (keyed or reading.ended)), name="readers left")

    async def _all_left(self, trace_id: str, seats: _Seats, *, stop: bool) -> None:
        await seats.attendance.aclose()
        # Somebody may have come back while we were leaving, or while we asked.
        if not stop or trace_id in self._seats or await self._audience.others(trace_id) or trace_id in self._seats:
            return
        try:
            await self._stop(trace_id, "the client left")
        except Unavailable as error:
            logger.warning("cancel not sent; the run ends at its deadline", trace_id=trace_id, error=error.message)
