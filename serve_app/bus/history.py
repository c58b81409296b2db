"""Earlier events of a run, read from the EVT stream with batched direct gets: no consumer is made on the server."""

import asyncio
from dataclasses import dataclass
from typing import Final

import orjson
from nats.aio.msg import Msg

from serve_app.bus.connection import NatsConnection
from serve_app.bus.streams import EVENT_STREAM, event_subject
from serve_app.errors import Unavailable, UpstreamFailed
from serve_app.events import RunEvent, decode

_DIRECT_GET: Final = f"$JS.API.DIRECT.GET.{EVENT_STREAM}"
_BARRIER_SUBJECT: Final = event_subject("barrier")  # a name that no run has
_BATCH: Final = 256
_TIMEOUT_S: Final = 5.0
_END_OF_BATCH: Final = "204"
_NOT_FOUND: Final = "404"


@dataclass(frozen=True, slots=True)
class Page:
    """Some events in stream order; `position` is the stream sequence to ask from next, `more` whether that pays."""

    events: list[RunEvent]
    position: int
    more: bool


def decode_event(message: Msg) -> RunEvent:
    """The event in a message. Raises UpstreamFailed for anything else."""
    try:
        return decode(message.data)
    except ValueError as error:
        raise UpstreamFailed(f"message on {message.subject} is no event this version knows: {error}") from error


class EventHistory:
    """What the stream holds. Every method raises Unavailable when NATS is away or slower than a few seconds."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def last(self, trace_id: str) -> RunEvent | None:
        """The newest event of the run, of all that the server had when this was called."""
        await self._catch_up()
        message = await self._connection.request(f"{_DIRECT_GET}.{event_subject(trace_id)}", b"", timeout_s=_TIMEOUT_S)
        status = _status(message)
        if status == _NOT_FOUND:
            return None
        if status is not None:
            raise _refused(trace_id, message)
        return decode_event(message)

    async def _catch_up(self) -> None:
        # The server delivers a message before it stores it. One that it must refuse to store passes through the
        # same queue, so its answer says that all before it are stored.
        headers = {"Nats-Expected-Stream": "none"}
        await self._connection.request(_BARRIER_SUBJECT, b"", timeout_s=_TIMEOUT_S, headers=headers)

    async def page(self, trace_id: str, position: int) -> Page:
        """Events of the run from stream sequence `position` on."""
        batch = _Batch()
        client = await self._connection.client()
        inbox = client.new_inbox()
        subscription = await self._connection.subscribe(inbox, batch.receive)
        try:
            ask = {"seq": max(position, 1), "next_by_subj": event_subject(trace_id), "batch": _BATCH}
            await self._connection.publish(_DIRECT_GET, orjson.dumps(ask), reply=inbox)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await batch.complete.wait()
            except TimeoutError:
                raise Unavailable(f"stream {EVENT_STREAM} gave no events of run {trace_id} in {_TIMEOUT_S:g} s") from None
        finally:
            await self._connection.unsubscribe(subscription)
        if batch.refusal is not None:
            raise _refused(trace_id, batch.refusal)
        return Page([decode_event(m) for m in batch.messages], batch.last + 1 if batch.messages else position, batch.pending > 0)


class _Batch:
    """Collects the answers to one batched get."""

    def __init__(self) -> None:
        self.messages: list[Msg] = []
        self.last = 0
        self.pending = 0
        self.refusal: Msg | None = None
        self.complete = asyncio.Event()

    async def receive(self, message: Msg) -> None:
        status = _status(message)
        if status is None:
            self.messages.append(message)
            self.last = int(message.headers["Nats-Sequence"])
            return
        if status == _END_OF_BATCH:
            self.pending = int(message.headers.get("Nats-Num-Pending", 0))
        elif status != _NOT_FOUND:
            self.refusal = message
        self.complete.set()


def _status(message: Msg) -> str | None:
    # An event always has a payload; a status never has one.
    if message.data or not message.headers:
        return None
    status = message.headers.get("Status")
    return str(status) if status else None


def _refused(trace_id: str, message: Msg) -> Unavailable:
    headers = message.headers or {}
    return Unavailable(
        f"stream {EVENT_STREAM} refused to give the events of run {trace_id}: "
        f"{headers.get('Status')} {headers.get('Description', '')} (reading history needs nats-server 2.11 or later)"
    )
