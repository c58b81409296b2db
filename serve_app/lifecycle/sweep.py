"""No run stays `running` for ever: runs whose owner fell silent are ended, and their readers are told.

A lease says who answers for a run. Its owner extends it while it works; a workflow run that waits in the queue has a
lease that reaches past its deadline. Whoever finds a lease that is over may end the run, in one statement that also
counts `attempt` up, so that an owner who comes back finds nothing to settle.

The row is ended first and the one `finished` is published after that, as for every run. If NATS is away then, the
sweeper that ended the row tells later, and if that one dies too, another does: the log keeps a note of ends that nobody
has told. A gateway's readers see the end in the log meanwhile.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from serve_app.errors import AifactoryError, Unavailable
from serve_app.events import FinishedEvent, RoleEvent
from serve_app.lifecycle.replays import answer_is_out, recorded_bodies
from serve_app.lifecycle.settle import note_told
from serve_app.ports import EventBus, RunQueue, RunRecord, RunStore
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.spans import abandoned
from serve_app.telemetry import bound, count, gauge, logger

_BATCH: Final = 100
_PURGE_EVERY_S: Final = 300
_PURGE_BATCH: Final = 5000
_MAX_UNTOLD: Final = 10_000


def waiting_lease_s(run: Run, lease_s: float) -> float:
    """The lease of a run that waits in the queue: until its deadline, and then as long as a silent owner gets."""
    return max(0.0, run.seconds_left) + lease_s


async def tell_end(store: RunStore, bus: EventBus, record: RunRecord, *, perhaps_said: bool = False) -> None:
    """Publish the `finished` of a run that the log knows as ended, unless its stream has one.

    Raises errors.Unavailable when the stream cannot be asked. In bus=core nobody can be asked: there it is published
    in any case, and a reader that has seen its run's end is not listening any more.
    `perhaps_said`: the run's own process recorded the end and may have said it. If NATS then holds nothing of the run,
    it has been restarted since, and nobody can know. It is not said twice: readers find the end in the log.
    """
    if record.told:
        return
    last = await bus.last_event(record.trace_id)
    publisher = await bus.open_run(record.trace_id, resume=True)
    if publisher.finished:
        await store.mark_told(record.trace_id)
        return
    if perhaps_said and last is None and bus.resumable:
        logger.warning("NATS lost the run's events: its end is in the log only", trace_id=record.trace_id)
        await store.mark_told(record.trace_id)
        return
    is_out = last is not None and answer_is_out(record, last.body)
    for body in recorded_bodies(record):
        # The role was said when the run began, and what was heard already is not said twice.
        if isinstance(body, FinishedEvent) or not (is_out or isinstance(body, RoleEvent)):
            await publisher.emit(body)
    await note_told(store, publisher)


class Sweeper:
    """Ends abandoned runs. Any number may be at work side by side.

    A lease only means something while its owner could extend it. So a sweeper that has just started, or saw
    Postgres away, or stood still itself, watches for `lease_s` before it ends anything; and it leaves workflow runs
    to the queue while that holds any, and until NATS has been there long enough to bring them again. A run whose
    deadline is long over is ended in any case.

    `on_ended` is called with every ended run, and must not raise.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],  # those of now: some change while the process lives
        *,
        store: RunStore,
        bus: EventBus,
        queue: RunQueue,
        on_ended: Callable[[RunRecord], Awaitable[None]] | None = None,
    ) -> None:
        fixed = settings()
        self.interval_s = fixed.lease_s / 3
        self._settings = settings
        self._lease_s = fixed.lease_s
        self._redelivered_s = fixed.lease_s + fixed.queue_ack_wait_s
        # At its owner's death at least two thirds of a lease are left, and the queue waits ack_wait from then on.
        self._overdue_s = max(0.0, fixed.queue_ack_wait_s - fixed.lease_s * 2 / 3)
        self._retention_s = fixed.run_retention_s
        self._purged_at = 0.0
        self._store = store
        self._bus = bus
        self._queue = queue
        self._queue_holds_runs = True
        self._on_ended = on_ended
        self._untold: dict[str, bool] = {}  # trace_ids, and whether somebody may have said it; the log notes them too
        # The wall clock, which goes on while a machine sleeps, as the leases do.
        self._swept_at = self._owners_since = self._queue_since = time.time()

    @property
    def watching(self) -> bool:
        """Whether it still waits before it takes leases at their word."""
        now = time.time()
        return now - self._owners_since < self._lease_s or now - self._queue_since < self._redelivered_s

    async def run(self) -> None:
        """Sweep for ever; the caller cancels it."""
        while True:
            # Sweepers that started together drift apart.
            await asyncio.sleep(self.interval_s * random.uniform(0.8, 1.0))  # noqa: S311 - jitter, not a secret
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - one bad sweep must not be the last; the log has the cause
                logger.opt(exception=error).error("sweep broke")

    async def sweep(self) -> int:
        """End what is abandoned; how many runs that were. Postgres or NATS being away is logged, not raised."""
        await self._look_around()
        ended = 0
        try:
            await self._tell(await self._store.take_untold(older_than_s=self._lease_s, limit=_BATCH), perhaps_said=True)
            while (swept := await self._sweep_batch()) > 0:
                ended += swept
                if swept < _BATCH:
                    break
            if time.time() - self._purged_at > _PURGE_EVERY_S:
                self._purged_at = time.time()
                await self._store.purge(older_than_s=self._retention_s, limit=_PURGE_BATCH)
        except Unavailable as error:
            self._owners_since = time.time()
            logger.warning("no sweep: the idempotency log is away", error=error.message)
        return ended

    async def _look_around(self) -> None:
        now = time.time()
        if now - self._swept_at > self._lease_s:
            self._owners_since = self._queue_since = now  # this process stood still; so may the owners have
        self._swept_at = now
        try:
            backlog = await self._queue.backlog()
        except Unavailable:
            self._queue_since = time.time()
            return
        self._queue_holds_runs = backlog > 0  # then no worker may have come back yet to take up what the last one left
        gauge("aifactory_queue_lag", backlog)

    async def _sweep_batch(self) -> int:
        now = time.time()
        # With limit 0 Postgres is only asked whether it is there.
        limit = _BATCH if now - self._owners_since >= self._lease_s else 0
        may_come_again = self._queue_holds_runs or now - self._queue_since < self._redelivered_s
        overdue_s = self._settings().request_timeout_s if may_come_again else self._overdue_s
        records = await self._store.end_abandoned(limit=limit, workflow_overdue_s=overdue_s)
        for record in records:
            logger.warning("run ended: its owner fell silent", trace_id=record.trace_id, route=record.route)
            count("aifactory_runs_total", route=record.route, outcome="abandoned")
            code = str((record.error or {}).get("code") or "abandoned")
            abandoned(record.trace_id, record.traceparent, record.route, since=record.created_at, code=code)
        await self._tell([record.trace_id for record in records], perhaps_said=False)
        for record in records:
            if self._on_ended is not None:
                await self._on_ended(record)
        return len(records)

    async def _tell(self, trace_ids: list[str], *, perhaps_said: bool) -> None:
        for trace_id in trace_ids[: _MAX_UNTOLD - len(self._untold)]:
            self._untold.setdefault(trace_id, perhaps_said)
        for trace_id, said in list(self._untold.items()):
            try:
                with bound(trace_id):
                    record = await self._store.find(trace_id)
                    if record is None:
                        await self._store.mark_told(trace_id)  # its retention is over
                    else:
                        # Nothing happens if another sweeper told it meanwhile.
                        await tell_end(self._store, self._bus, record, perhaps_said=said)
            except AifactoryError as error:
                logger.warning("readers of ended runs are told later", runs=len(self._untold), error=error.message)
                return
            del self._untold[trace_id]
