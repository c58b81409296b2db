"""The queue of workflow runs on JetStream: what it took is on disk, and goes to another worker when one falls silent."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from serve_app.bus.connection import NatsConnection
from serve_app.bus.core_queue import CoreRunQueue
from serve_app.bus.delivery import Delivery, WorkQueue
from serve_app.bus.run_json import decode_run, encode_run
from serve_app.bus.streams import REQUEST_STREAM, REQUEST_SUBJECT, WORKERS, ensure_request_stream
from serve_app.errors import Overloaded, Unavailable
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.telemetry import logger

_TIMEOUT_S: Final = 5.0
_PULL_S: Final = 5.0  # how long one pull waits at the server; a restart of NATS costs at most this
_AWAY_RETRY_S: Final = 0.5
_STREAM_FULL: Final = frozenset({10047, 10077, 10122})  # no space, maximum messages, maximum bytes


def run_queue(connection: NatsConnection, settings: Settings) -> WorkQueue:
    """The queue that the settings want."""
    return CoreRunQueue(connection) if settings.bus == "core" else NatsRunQueue(connection, settings)


class NatsRunQueue:
    """RunQueue and WorkQueue on the stream REQ; adds the stream to what `connection` sets up."""

    def __init__(self, connection: NatsConnection, settings: Settings) -> None:
        self._connection = connection
        self._ack_wait_s = settings.queue_ack_wait_s
        self._max_deliver = settings.queue_max_deliver
        connection.on_connect(ensure_request_stream(settings))

    async def ping(self) -> None:
        """Raises Unavailable unless NATS answers."""
        await self._connection.flush()

    async def submit(self, run: Run) -> None:
        """See RunQueue. Submitting the same run again within two minutes is one submission."""
        answer = await self._connection.request(
            REQUEST_SUBJECT, encode_run(run), timeout_s=_TIMEOUT_S, headers={"Nats-Msg-Id": run.trace_id}
        )
        problem = orjson.loads(answer.data).get("error")
        if problem is None:
            return
        if problem.get("err_code") in _STREAM_FULL:
            raise Overloaded(f"the queue of workflow runs is full ({problem.get('description')}); retry later", retry_after_s=5)
        raise Unavailable(f"the queue of workflow runs did not take run {run.trace_id}: {problem.get('description')}")

    async def pending(self) -> int:
        """See RunQueue."""
        return int((await self._consumer())["num_pending"])

    async def backlog(self) -> int:
        """See RunQueue. A run that was delivered for the last time stays in the stream, but is not counted here."""
        consumer = await self._consumer()
        return int(consumer["num_pending"]) + int(consumer["num_ack_pending"])

    async def _consumer(self) -> dict[str, Any]:
        subject = f"$JS.API.CONSUMER.INFO.{REQUEST_STREAM}.{WORKERS}"
        answer: dict[str, Any] = orjson.loads((await self._connection.request(subject, b"", timeout_s=_TIMEOUT_S)).data)
        if "error" in answer:
            raise Unavailable(f"consumer {WORKERS} of stream {REQUEST_STREAM} is not there: {answer['error'].get('description')}")
        return answer

    async def deliveries(self, *, limit: int) -> AsyncGenerator[Delivery, None]:
        """See WorkQueue."""
        puller, slots = _Puller(self._connection), asyncio.Semaphore(limit)
        try:
            while True:
                await slots.acquire()  # the caller frees it by ending a delivery
                delivery = None
                while delivery is None:
                    message = await puller.next()
                    delivery = None if message is None else await self._open(message, slots.release)
                yield delivery
        finally:
            await puller.close()

    async def _open(self, message: Msg, free_slot: Callable[[], None]) -> "JetStreamDelivery | None":
        try:
            run = decode_run(message.data)
        except ValueError as error:
            logger.error("rejected a message on {} that is no run: {}", REQUEST_SUBJECT, error)
            with suppress(Unavailable):  # then it comes again, and is rejected again
                await self._connection.publish(message.reply, Msg.Ack.Term)
            return None
        count = int(message.metadata.num_delivered)
        return JetStreamDelivery(
            self._connection,
            message.reply,
            run,
            ack_wait_s=self._ack_wait_s,
            delivery_count=count,
            last=count >= self._max_deliver,
            free_slot=free_slot,
        )


class JetStreamDelivery(Delivery):
    """A delivery that is acknowledged to the server."""

    def __init__(self, connection: NatsConnection, reply: str, run: Run, *, ack_wait_s: float, **rest: Any) -> None:
        super().__init__(run, **rest)
        self._connection = connection
        self._reply = reply
        self._ack_wait_s = ack_wait_s

    def _beat_interval_s(self) -> float:
        return self._ack_wait_s / 3

    async def _say_in_progress(self) -> None:
        await self._connection.publish(self._reply, Msg.Ack.Progress)

    async def _done(self) -> None:
        await self._confirmed(Msg.Ack.Ack)

    async def _retry(self, delay_s: float) -> None:
        await self._confirmed(Msg.Ack.Nak + b" " + orjson.dumps({"delay": int(delay_s * 1e9)}))

    async def _reject(self) -> None:
        await self._confirmed(Msg.Ack.Term)

    async def _confirmed(self, verdict: bytes) -> None:
        await self._connection.request(self._reply, verdict, timeout_s=_TIMEOUT_S)


class _Puller:
    """Asks the consumer for one message at a time, on whatever client is alive."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._client: Client | None = None
        self._pull: Any = None

    async def next(self) -> Msg | None:
        """The next message, or None when there was none for a while or NATS is away."""
        try:
            client = await self._connection.client()
            if client is not self._client:
                self._pull = await client.jetstream().pull_subscribe_bind(WORKERS, stream=REQUEST_STREAM)
                self._client = client
            return (await self._pull.fetch(1, timeout=_PULL_S))[0]
        except (nats.errors.TimeoutError, TimeoutError):
            return None
        except Unavailable:
            await asyncio.sleep(_AWAY_RETRY_S)  # logged by the connection
        except (nats.errors.Error, OSError) as error:
            logger.warning("pulling runs from stream {} failed: {}", REQUEST_STREAM, error)
            await asyncio.sleep(_AWAY_RETRY_S)
        return None

    async def close(self) -> None:
        """Stop pulling, and give back what arrived meanwhile."""
        pull, self._pull, self._client = self._pull, None, None
        if pull is None:
            return
        with suppress(nats.errors.Error, OSError, Unavailable):  # with the client gone, ack_wait gives it back
            while pull.pending_msgs:
                message = (await pull.fetch(1, timeout=0.1))[0]
                await self._connection.publish(message.reply, Msg.Ack.Nak)
        with suppress(nats.errors.Error, OSError, Unavailable):
            await pull.unsubscribe()
            await self._connection.flush()  # from here on the server gives this worker nothing
