"""Waiting for the next item of an iterator, with a limit, without losing the item."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_MOST_AHEAD: Final = 16
_CLOSE_S: Final = 1.0


class ReadAhead(Generic[T]):
    """Reads `items` ahead, a few at a time: a wait for the next one may be given up and taken up again.

    An async iterator whose wait is cancelled is at its end, so a task does the waiting: one for all items, because one
    for each costs more than what is done with the item.
    """

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._ahead: deque[T] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    async def next(self, timeout_s: float) -> T | None:
        """The next item; None when none came in time. Raises what the items raise, StopAsyncIteration after the last."""
        if not self._ahead:
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._read())
                self._reading.add_done_callback(lambda _: self._wake())
            if not self._reading.done():
                await self._news(timeout_s)
        if self._ahead:
            self._room.set()
            return self._ahead.popleft()
        if self._reading is not None and self._reading.done():
            self._reading.result()
            raise StopAsyncIteration
        return None

    async def close(self) -> None:
        """Stop reading. To be called before the iterator's source is closed."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading}, timeout=_CLOSE_S)
            if self._reading.done() and not self._reading.cancelled():
                self._reading.exception()  # raised to whoever read; now nobody does

    async def _read(self) -> None:
        async for item in self._items:
            self._ahead.append(item)
            self._wake()
            while len(self._ahead) >= _MOST_AHEAD:
                self._room.clear()
                await self._room.wait()

    async def _news(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
