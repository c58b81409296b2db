"""The JetStream streams and the workers' consumer: made or updated at every connect.

How long NATS may lose a run after a power cut is set at the server, not here: `jetstream { sync_interval: always }`
makes it write each request to disk before it acknowledges it. Reading history needs nats-server 2.11 or later.
"""

from typing import Any, Final

from nats.aio.client import Client
from nats.js import api
from nats.js.errors import BadRequestError

from serve_app.bus.connection import ConnectHook
from serve_app.errors import Unavailable
from serve_app.settings import Settings

REQUEST_STREAM: Final = "REQ"
REQUEST_SUBJECT: Final = "req.chat"
WORKERS: Final = "workers"
EVENT_STREAM: Final = "EVT"
DUPLICATE_WINDOW_S: Final = 120

_NAME_IN_USE: Final = 10058
_MAX_ACK_PENDING: Final = 1000  # runs that all workers together may hold


def event_subject(trace_id: str) -> str:
    """Where the events of a run are published."""
    return f"evt.chat.{trace_id}"


def cancel_subject(trace_id: str) -> str:
    """Where a run is asked to stop."""
    return f"cancel.{trace_id}"


def request_stream(settings: Settings) -> api.StreamConfig:
    """REQ: workflow runs that wait for a worker. A run leaves it when a worker has acknowledged it."""
    return api.StreamConfig(
        name=REQUEST_STREAM,
        subjects=[REQUEST_SUBJECT],
        retention=api.RetentionPolicy.WORK_QUEUE,
        storage=api.StorageType.FILE,
        discard=api.DiscardPolicy.NEW,
        max_msgs=settings.queue_max_pending,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


def event_stream(settings: Settings) -> api.StreamConfig:
    """EVT: the events of recent runs, for readers who come late. The oldest go first."""
    return api.StreamConfig(
        name=EVENT_STREAM,
        subjects=[event_subject("*")],
        storage=api.StorageType.MEMORY,
        discard=api.DiscardPolicy.OLD,
        max_age=settings.event_retention_s,
        max_bytes=settings.event_stream_max_bytes,
        # A window longer than max_age is refused, and events carry no message id.
        duplicate_window=min(DUPLICATE_WINDOW_S, settings.event_retention_s),
        allow_direct=True,
    )


def worker_consumer(settings: Settings) -> api.ConsumerConfig:
    """`workers`: shared by all workers. A run whose worker is silent for ack_wait goes to another one."""
    return api.ConsumerConfig(
        durable_name=WORKERS,
        filter_subject=REQUEST_SUBJECT,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=settings.queue_ack_wait_s,
        max_deliver=settings.queue_max_deliver,
        max_ack_pending=_MAX_ACK_PENDING,
    )


def ensure_event_stream(settings: Settings) -> ConnectHook:
    """A connect hook that makes EVT stand."""

    async def ensure(client: Client) -> None:
        await _ensure_stream(client.jetstream(), event_stream(settings))

    return ensure


def ensure_request_stream(settings: Settings) -> ConnectHook:
    """A connect hook that makes REQ and its consumer stand."""

    async def ensure(client: Client) -> None:
        jetstream = client.jetstream()
        await _ensure_stream(jetstream, request_stream(settings))
        try:
            await jetstream.add_consumer(REQUEST_STREAM, worker_consumer(settings))
        except BadRequestError as error:
            raise _cannot_change(f"consumer {WORKERS} of stream {REQUEST_STREAM}", error) from error

    return ensure


async def _ensure_stream(jetstream: Any, config: api.StreamConfig) -> None:
    try:
        await jetstream.add_stream(config)
    except BadRequestError as error:
        if error.err_code != _NAME_IN_USE:
            raise
        try:
            await jetstream.update_stream(config)
        except BadRequestError as refused:
            raise _cannot_change(f"stream {config.name}", refused) from refused


def _cannot_change(what: str, error: BadRequestError) -> Unavailable:
    return Unavailable(
        f"NATS cannot change {what} to what the settings say ({error.description}); "
        "delete it once its messages are not needed any more, and it is made anew"
    )
