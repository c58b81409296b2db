"""Reads the events of a run that lives in another process.

Live events come by a core subscription. What came before it, and what it missed, comes from the stream; the two are
joined by seq. A hole that the stream cannot fill ends the reader with an error: a hole is never handed on.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg

from serve_app.bus.connection import NatsConnection
from serve_app.bus.history import EventHistory, decode_event
from serve_app.bus.run_log import silent, too_slow
from serve_app.bus.streams import event_subject
from serve_app.errors import AifactoryError, NotFound, Unavailable
from serve_app.events import FinishedEvent, RunEvent


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """How patient a reader is. Times are seconds."""

    buffer: int = 8192  # events that may wait for the reader
    idle_check_s: float = 2.0  # quiet time after which the stream is asked whether something was missed
    away_s: float = 5.0  # how long NATS may be away
    hole_s: float = 2.0  # how long a missing event may take to show up in the stream
    silence_s: float = 3600.0  # longest pause of a healthy run
    silence_after_loss_s: float = 30.0  # the same, once the connection was lost: its end may have been lost too


class RemoteReader:
    """One reader of one run. Open it, iterate `events()` once, close it."""

    def __init__(
        self,
        connection: NatsConnection,
        history: EventHistory | None,
        trace_id: str,
        after: int,
        limits: ReaderLimits,
        *,
        known_finished: bool = False,
    ) -> None:
        self._connection = connection
        self._history = history
        self._trace_id = trace_id
        self._after = after
        self._next = after + 1
        self._limits = limits
        self._known_finished = known_finished
        self._position = 0  # stream sequence to read on from
        self._buffer: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._overflowed = False
        self._finished = False
        self._lost = False
        self._generation = connection.generation
        self._last_news = time.monotonic()
        self._subscription: Any = None

    async def open(self) -> None:
        """Stand on the subject; returns once the server knows. Raises Unavailable."""
        self._subscription = await self._connection.subscribe(event_subject(self._trace_id), self._receive)
        self._generation = self._connection.generation
        try:
            await self._connection.flush()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave the subject."""
        subscription, self._subscription = self._subscription, None
        self._buffer.clear()
        if subscription is not None:
            await self._connection.unsubscribe(subscription)

    async def events(self) -> AsyncGenerator[RunEvent, None]:
        """Events with seq > `after`, up to `finished`. Raises NotFound, Overloaded or Unavailable instead of a hole."""
        async with aclosing(self._from_stream()) as earlier:
            async for event in earlier:
                yield event
        if self._position == 0 and self._history is not None and (self._after >= 0 or self._known_finished):
            raise self._no_longer_held()
        quiet_s = min(0.25, self._limits.idle_check_s)  # an event may be on its way into the stream as we join
        while not self._finished:
            live = await self._next_live(quiet_s)
            if live is None or live.seq > self._next:
                async with aclosing(self._fill(None if live is None else live.seq)) as missed:
                    async for event in missed:
                        yield event
            if live is not None and live.seq == self._next and not self._finished:
                yield self._accept(live)
            quiet_s = self._limits.idle_check_s

    async def _receive(self, message: Msg) -> None:
        if len(self._buffer) >= self._limits.buffer:
            self._overflowed = True
        if not self._overflowed:
            self._buffer.append(message)
        self._arrived.set()

    def _accept(self, event: RunEvent) -> RunEvent:
        self._next = event.seq + 1
        self._finished = isinstance(event.body, FinishedEvent)
        self._last_news = time.monotonic()
        return event

    async def _next_live(self, quiet_s: float) -> RunEvent | None:
        """The next message that is news, or None when none came for a while and the stream should be asked."""
        while True:
            if self._overflowed:
                raise too_slow(self._trace_id, self._limits.buffer)
            if self._buffer:
                event = decode_event(self._buffer.popleft())
                if event.seq >= self._next:
                    return event
                if self._history is None:
                    raise Unavailable(f"run {self._trace_id} began anew at event {event.seq}; bus=core cannot follow that")
                continue
            self._arrived.clear()
            try:
                async with asyncio.timeout(quiet_s):
                    await self._arrived.wait()
            except TimeoutError:
                await self._check_silence()
                return None

    async def _check_silence(self) -> None:
        if self._connection.generation != self._generation or not self._connection.connected:
            self._lost = True
            if self._history is None:
                raise Unavailable(f"the connection to NATS was lost while run {self._trace_id} was read; events may be missing")
            await self._connection.wait_connected(self._limits.away_s)
            self._generation = self._connection.generation
        patience_s = self._limits.silence_after_loss_s if self._lost else self._limits.silence_s
        if time.monotonic() - self._last_news > patience_s:
            raise silent(self._trace_id, patience_s)

    async def _fill(self, up_to: int | None) -> AsyncGenerator[RunEvent, None]:
        """What the stream holds from the next event on. With `up_to`, Unavailable unless all below it turns up."""
        deadline = time.monotonic() + self._limits.hole_s
        while True:
            async with aclosing(self._from_stream()) as stored:
                async for event in stored:
                    yield event
            if self._finished or up_to is None or self._next >= up_to:
                return
            if self._history is None or time.monotonic() > deadline:
                raise Unavailable(
                    f"events {self._next} to {up_to - 1} of run {self._trace_id} were lost"
                    + (" (bus=core keeps no history)" if self._history is None else "")
                )
            # The stream stores a moment after it delivers.
            await asyncio.sleep(0.05)

    async def _from_stream(self) -> AsyncGenerator[RunEvent, None]:
        if self._history is None:
            return
        more = True
        while more and not self._finished:
            page = await self._history.page(self._trace_id, self._position)
            more = page.more and page.position > self._position
            self._position = page.position
            for event in page.events:
                if event.seq > self._next:
                    raise await self._gap(event.seq)
                if event.seq == self._next:
                    yield self._accept(event)
                elif isinstance(event.body, FinishedEvent):
                    self._finished = True  # the caller had asked for what comes after the end

    async def _gap(self, found: int) -> AifactoryError:
        last = await self._history.last(self._trace_id) if self._history is not None else None
        if last is not None and isinstance(last.body, FinishedEvent):
            return self._no_longer_held()
        return Unavailable(f"events {self._next} to {found - 1} of run {self._trace_id} are not in the stream")

    def _no_longer_held(self) -> NotFound:
        return NotFound(f"events of run {self._trace_id} are no longer held")
