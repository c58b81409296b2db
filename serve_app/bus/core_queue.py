"""The queue of workflow runs on core NATS: a run is handed from a gateway to a free worker, and kept nowhere.

A worker that dies takes its runs with it. That is what bus=core means: nothing to administer, losses tolerated.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from serve_app.bus.connection import NatsConnection
from serve_app.bus.delivery import Delivery
from serve_app.bus.run_json import decode_run, encode_run
from serve_app.bus.streams import REQUEST_SUBJECT, WORKERS
from serve_app.errors import Overloaded, Unavailable
from serve_app.runs import Run
from serve_app.telemetry import logger

_TAKEN: Final = b"taken"
_BUSY: Final = b"busy"
_NOT_A_RUN: Final = b"not a run"
_ANSWER_S: Final = 2.0
_PATIENCE_S: Final = 2.0  # how long submit looks for a free worker
_ASK_AGAIN_S: Final = 0.05
_AWAY_RETRY_S: Final = 0.5


class CoreRunQueue:
    """RunQueue and WorkQueue by request and reply."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    async def ping(self) -> None:
        """Raises Unavailable unless NATS answers."""
        await self._connection.flush()

    async def submit(self, run: Run) -> None:
        """See RunQueue. Returns once a worker has taken the run; Unavailable without workers, Overloaded if all are busy."""
        payload = encode_run(run)
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            answer = (await self._connection.request(REQUEST_SUBJECT, payload, timeout_s=_ANSWER_S)).data
            if answer == _TAKEN:
                return
            if answer != _BUSY:
                raise Unavailable(f"a worker did not understand run {run.trace_id}; do gateway and workers run the same version?")
            if time.monotonic() > give_up:
                raise Overloaded("all workers are busy, and bus=core keeps no queue; retry later", retry_after_s=5)
            await asyncio.sleep(_ASK_AGAIN_S)

    async def pending(self) -> int:
        """Always 0: nothing waits."""
        return 0

    async def backlog(self) -> int:
        """Always 0, once NATS has answered: a run that was taken is never brought again."""
        await self._connection.flush()
        return 0

    async def deliveries(self, *, limit: int) -> AsyncGenerator[Delivery, None]:
        """See WorkQueue. Runs that were taken but not handed out when it is closed are lost."""
        counter = _Counter(self._connection, limit)
        try:
            while True:
                yield await counter.next()
        finally:
            await counter.close()


class CoreDelivery(Delivery):
    """A delivery that nobody waits for: its verdicts only free the slot."""

    def _beat_interval_s(self) -> None:
        return None

    async def _say_in_progress(self) -> None: ...

    async def _done(self) -> None: ...

    async def _retry(self, delay_s: float) -> None: ...

    async def _reject(self) -> None: ...


class _Counter:
    """Answers the requests that reach this worker: takes a run while a slot is free."""

    def __init__(self, connection: NatsConnection, limit: int) -> None:
        self._connection = connection
        self._free = limit
        self._taken: asyncio.Queue[Run] = asyncio.Queue()  # bounded by the slots
        self._client: Client | None = None
        self._subscription: Any = None

    async def next(self) -> Delivery:
        while True:
            await self._listen()
            with suppress(TimeoutError):
                async with asyncio.timeout(_AWAY_RETRY_S):
                    run = await self._taken.get()
                    return CoreDelivery(run, delivery_count=1, last=True, free_slot=self._free_slot)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.unsubscribe(subscription)
        if not self._taken.empty():
            logger.warning("{} runs were taken and not begun; bus=core loses them", self._taken.qsize())

    def _free_slot(self) -> None:
        self._free += 1

    async def _listen(self) -> None:
        try:
            client = await self._connection.client()
            if client is not self._client:
                self._subscription = await self._connection.subscribe(REQUEST_SUBJECT, self._answer, queue=WORKERS)
                self._client = client
        except Unavailable:
            return  # logged by the connection; tried again in a moment

    async def _answer(self, message: Msg) -> None:
        if self._free <= 0:
            await message.respond(_BUSY)
            return
        try:
            run = decode_run(message.data)
        except ValueError as error:
            logger.error("rejected a message on {} that is no run: {}", REQUEST_SUBJECT, error)
            if message.reply:
                await message.respond(_NOT_A_RUN)
            return
        self._free -= 1
        self._taken.put_nowait(run)
        await message.respond(_TAKEN)
