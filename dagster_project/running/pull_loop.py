"""Pulls runs from the queue and hands each to what executes it; acknowledged when it has ended, delivered again if not."""

import asyncio
from contextlib import aclosing
from typing import Final, Protocol

from dagster_project.running.conductor import Conductor
from dagster_project.running.runner import DebateRunner, OwnedElsewhere
from serve_app.bus.delivery import Delivery, WorkQueue
from serve_app.errors import Unavailable
from serve_app.ports import EventBus, Replicas, RunStore
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.tasks import TaskOwner
from serve_app.telemetry import bound, logger

_STOP_S: Final = 30.0  # how long a stopped run may take to come to rest
_RETRY_S: Final = 1.0  # pause before a run is delivered again
_MAX_RETRY_S: Final = 30.0


class Hands(Protocol):
    """What executes the runs of a worker: the worker itself (Conductor), or a process for each (Dispatcher)."""

    def reconfigure(self, settings: Settings) -> None:
        """Take over changed live settings."""
        ...

    async def start(self) -> None: ...

    async def work(self, run: Run, *, resumed: bool, last: bool) -> float | None:
        """Take the run to its end. Returns None when it has one, else after how many seconds to deliver it again.

        `resumed`: it may have been begun before. `last`: it will not be delivered again. Raises OwnedElsewhere.
        """
        ...

    async def let_wait(self, run: Run) -> None:
        """The run will be delivered again."""
        ...

    async def give_up(self, run: Run, tries: int) -> None:
        """It will not be, and has no end."""
        ...

    def stop_hearing(self) -> None: ...

    async def close(self) -> None: ...


class PullLoop:
    """The worker's life: a few runs at a time, until `close`."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: RunStore,
        bus: EventBus,
        queue: WorkQueue,
        replicas: Replicas,
        runner: DebateRunner,
        hands: Hands | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._hands: Hands = hands or Conductor(
            settings, store=store, bus=bus, replicas=replicas, runner=runner, runs=settings.runs_per_worker
        )
        self._handling = TaskOwner()
        self._runs: set[asyncio.Task[None]] = set()
        self._pulling: asyncio.Task[None] | None = None
        self._closed = False

    def reconfigure(self, settings: Settings) -> None:
        """Take over changed live settings; runs under way keep the old ones."""
        self._settings = settings
        self._hands.reconfigure(settings)

    async def start(self) -> None:
        """Begin to pull."""
        await self._hands.start()
        self._pulling = asyncio.get_running_loop().create_task(self._pull(), name="pull runs")

    def check(self) -> None:
        """Raises RuntimeError when the loop has died: Serve then replaces the worker."""
        if not self._closed and (self._pulling is None or self._pulling.done()):
            raise RuntimeError("the worker no longer pulls runs; its log has the cause")

    async def close(self, grace_s: float) -> None:
        """Pull no more; give what runs `grace_s` seconds; then stop it and hand it back to the queue."""
        self._closed = True
        self._hands.stop_hearing()
        if self._pulling is not None:
            self._pulling.cancel()
            await asyncio.wait([self._pulling], timeout=_STOP_S)
        if self._runs:
            await asyncio.wait(self._runs, timeout=grace_s)
        await self._handling.close(_STOP_S)
        await self._hands.close()

    async def _pull(self) -> None:
        async with aclosing(self._queue.deliveries(limit=self._settings.runs_per_worker)) as deliveries:
            logger.info("worker ready", slots=self._settings.runs_per_worker)
            async for delivery in deliveries:
                handled = self._handling.spawn(self._handle(delivery), name=f"run {delivery.run.trace_id}")
                self._runs.add(handled)
                handled.add_done_callback(self._runs.discard)

    async def _handle(self, delivery: Delivery) -> None:
        """Take one delivery to its end, whatever happens on the way."""
        run = delivery.run
        with bound(run.trace_id, req_id=run.req_id):
            retry_s: float | None = 0
            elsewhere = False
            try:
                async with delivery.heartbeat():
                    resumed = delivery.delivery_count > 1
                    retry_s = await self._hands.work(run, resumed=resumed, last=delivery.last)
            except OwnedElsewhere:
                logger.warning("run is executed elsewhere; looking again later", delivery=delivery.delivery_count)
                retry_s, elsewhere = self._settings.queue_ack_wait_s, True
            except Exception as error:  # noqa: BLE001 - a run is never lost: the log has the cause, the queue brings it again
                logger.opt(exception=error).error("run could not be worked on", delivery=delivery.delivery_count)
                retry_s = min(_RETRY_S * 2 ** (delivery.delivery_count - 1), _MAX_RETRY_S)
            finally:
                await self._end(delivery, retry_s, elsewhere=elsewhere)

    async def _end(self, delivery: Delivery, retry_s: float | None, *, elsewhere: bool) -> None:
        try:
            if retry_s is None:
                await delivery.done()
            elif not delivery.last:
                if not elsewhere:
                    await self._hands.let_wait(delivery.run)
                await delivery.retry(retry_s)
            else:
                if not elsewhere:  # else its owner ends it, or the sweeper once the owner falls silent
                    await self._hands.give_up(delivery.run, delivery.delivery_count)
                await delivery.reject()
        except Unavailable as error:
            logger.warning("the queue did not confirm the end of a delivery; it may come again", error=error.message)
