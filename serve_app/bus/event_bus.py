"""The events of runs on NATS. A run that lives in this process is read from memory, whether NATS is there or not."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Literal, Self

from nats.aio.client import Client
from nats.aio.msg import Msg

from serve_app.bus.cancel import CancelListeners
from serve_app.bus.connection import NatsConnection
from serve_app.bus.history import EventHistory
from serve_app.bus.remote_reader import ReaderLimits, RemoteReader
from serve_app.bus.run_log import LogPublisher, RunLog, RunLogs
from serve_app.bus.streams import cancel_subject, ensure_event_stream, event_subject
from serve_app.errors import Unavailable
from serve_app.events import FinishedEvent, RunEvent, encode
from serve_app.ports import RunPublisher
from serve_app.settings import Settings
from serve_app.telemetry import count, logger


class NatsEventBus:
    """EventBus on NATS, in mode `core` or `jetstream`.

    A run should be opened before it is subscribed to in the same process: then its readers do not need NATS.
    In mode `jetstream` somebody must make the stream stand: `for_settings` does.
    """

    def __init__(
        self,
        connection: NatsConnection,
        *,
        mode: Literal["core", "jetstream"],
        subscriber_buffer: int = 8192,
        limits: ReaderLimits | None = None,
        logs: RunLogs | None = None,
    ) -> None:
        self._connection = connection
        self._history = EventHistory(connection) if mode == "jetstream" else None
        self._limits = limits or ReaderLimits(buffer=subscriber_buffer)
        self._logs = logs or RunLogs()
        self._cancels = CancelListeners()
        self._cancels_on: Client | None = None

    @classmethod
    def for_settings(cls, connection: NatsConnection, settings: Settings) -> Self:
        """The bus as the settings want it; adds the event stream to what `connection` sets up."""
        if settings.bus == "jetstream":
            connection.on_connect(ensure_event_stream(settings))
        limits = ReaderLimits(buffer=settings.subscriber_buffer, silence_s=settings.event_retention_s)
        return cls(connection, mode=settings.bus, limits=limits)

    async def ping(self) -> None:
        """Raises Unavailable unless NATS answers."""
        await self._connection.flush()

    @property
    def resumable(self) -> bool:
        """See EventBus."""
        return self._history is not None and self._connection.connected

    async def open_run(self, trace_id: str, *, resume: bool = False) -> RunPublisher:
        """See EventBus.

        Without `resume` the trace_id must be new here (ValueError). With it, Unavailable is raised when the stream
        cannot be asked; the publisher of a run that has finished refuses every body. In mode core nothing is known
        of a run that lived elsewhere: it begins at 0.
        """
        log = await self._log_to_resume(trace_id) if resume else self._logs.open(trace_id)
        sender = _Sender(self._connection)
        return LogPublisher(self._logs, log, sender.send, sender.all_sent)

    @asynccontextmanager
    async def subscribe(self, trace_id: str, *, after: int = -1) -> AsyncIterator[AsyncIterator[RunEvent]]:
        """See EventBus. The iterator raises NotFound when the events of a finished run are no longer held."""
        log = self._logs.find(trace_id)
        if log is not None and log.base <= after + 1:
            async with aclosing(log.read(after, slack=self._limits.buffer, silence_s=self._limits.silence_s)) as events:
                yield events
            return
        known_finished = self._logs.ended_here(trace_id)
        reader = RemoteReader(self._connection, self._history, trace_id, after, self._limits, known_finished=known_finished)
        await reader.open()
        try:
            async with aclosing(reader.events()) as events:
                yield events
        finally:
            await reader.close()

    async def last_event(self, trace_id: str) -> RunEvent | None:
        """See EventBus."""
        log = self._logs.find(trace_id)
        if log is not None and log.last is not None:
            return log.last
        return await self._history.last(trace_id) if self._history is not None else None

    async def publish_cancel(self, trace_id: str, reason: str) -> None:
        """See EventBus. Returns once the server has the message."""
        await self._connection.client()  # waits for a connection that is just being made
        await self._connection.publish(cancel_subject(trace_id), CancelListeners.encode(reason))
        await self._connection.flush()

    async def on_cancel(self, callback: Callable[[str, str], None]) -> None:
        """See EventBus. While NATS is away the callback is kept, and listens as soon as it is back."""
        first = not self._cancels
        self._cancels.add(callback)
        if first:
            self._connection.on_connect(self._listen_for_cancels)
        try:
            await self._connection.wait_connected(2.0)
            await self._connection.flush()
        except Unavailable as error:
            logger.warning("cancel messages are not heard yet: {}", error)

    async def _listen_for_cancels(self, client: Client) -> None:
        if self._cancels_on is client:
            return  # nats-py renews subscriptions when it reconnects

        async def receive(message: Msg) -> None:
            self._cancels.tell(message.subject, message.data)

        await client.subscribe(cancel_subject("*"), cb=receive)
        self._cancels_on = client

    async def _log_to_resume(self, trace_id: str) -> RunLog:
        known = self._logs.find(trace_id)
        if self._logs.ended_here(trace_id):
            return known or RunLog(trace_id, finished=True)
        last = await self._history.last(trace_id) if self._history is not None else None
        if known is not None and (last is None or last.seq < known.next_seq):
            return known
        # Ours is out of date: another process went on with the run meanwhile.
        self._logs.forget(trace_id)
        if last is not None and isinstance(last.body, FinishedEvent):
            return RunLog(trace_id, last.seq + 1, finished=True)
        return self._logs.open(trace_id, 0 if last is None else last.seq + 1)


class _Sender:
    """Sends the events of one run; counts those that NATS did not take."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._warned = False

    async def all_sent(self) -> bool:
        if self._warned:
            return False
        try:
            await self._connection.flush()
        except Unavailable:
            return False
        return True

    async def send(self, event: RunEvent) -> None:
        try:
            await self._connection.publish(event_subject(event.trace_id), encode(event))
        except Unavailable as error:
            count("aifactory_events_unpublished_total")
            if not self._warned:
                self._warned = True
                logger.bind(trace_id=event.trace_id).warning("events from {} on are not published: {}", event.seq, error)
