"""Pulls runs from the queue, executes them, and sees to it that each one ends: settled once, acknowledged after that."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar

from dagster import DagsterRun, DagsterRunStatus
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from dagster_project.debate import DebateSpec
from dagster_project.resources import DebateRun, failed
from dagster_project.runner import DebateRunner, Execution, OwnedElsewhere
from serve_app.bus.delivery import Delivery, WorkQueue
from serve_app.errors import AifactoryError, BadRequest, Cancelled, DeadlineExceeded, Unavailable
from serve_app.events import Usage, UsageEvent
from serve_app.lifecycle.settle import settle
from serve_app.lifecycle.sweep import tell_end, waiting_lease_s
from serve_app.ports import EventBus, Replicas, RunRecord, RunStore
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.tasks import TaskOwner
from serve_app.telemetry import bound, logger, observe

T = TypeVar("T")
_STOP_S: Final = 30.0  # how long a stopped run may take to come to rest
_RETRY_S: Final = 1.0  # pause before a run is delivered again
_MAX_RETRY_S: Final = 30.0
_EARLY_CANCELS: Final = 1024


class PullLoop:
    """The worker's life: a few runs at a time, until `close`."""

    def __init__(
        self, settings: Settings, *, store: RunStore, bus: EventBus, queue: WorkQueue, replicas: Replicas, runner: DebateRunner
    ) -> None:
        self._settings = settings
        self._store = store
        self._bus = bus
        self._queue = queue
        self._replicas = replicas
        self._runner = runner
        self._threads = ThreadPoolExecutor(2 * settings.runs_per_worker, thread_name_prefix="dagster-run")
        self._handling = TaskOwner()
        self._aside = TaskOwner()
        self._runs: set[asyncio.Task[None]] = set()
        self._active: dict[str, Execution | None] = {}  # by trace_id; None until it can be stopped
        self._early: OrderedDict[str, str] = OrderedDict()  # cancels of runs that are not here (yet)
        self._pulling: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Hear cancels and begin to pull."""
        await self._bus.on_cancel(self._on_cancel)
        self._aside.spawn(self._keep_leases(), name="extend leases")
        self._pulling = asyncio.get_running_loop().create_task(self._pull(), name="pull runs")

    def check(self) -> None:
        """Raises RuntimeError when the loop has died: Serve then replaces the worker."""
        if not self._closed and (self._pulling is None or self._pulling.done()):
            raise RuntimeError("the worker no longer pulls runs; its log has the cause")

    async def close(self, grace_s: float) -> None:
        """Pull no more; give what runs `grace_s` seconds; then stop it and hand it back to the queue."""
        self._closed = True
        if self._pulling is not None:
            self._pulling.cancel()
            await asyncio.wait([self._pulling], timeout=_STOP_S)
        if self._runs:
            await asyncio.wait(self._runs, timeout=grace_s)
        await self._handling.close(_STOP_S)
        await self._aside.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

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
                    retry_s = await self._work_patiently(delivery)
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
                    await self._let_wait(delivery.run)
                await delivery.retry(retry_s)
            else:
                if not elsewhere:  # else its owner ends it, or the sweeper once the owner falls silent
                    await self._give_up(delivery)
                await delivery.reject()
        except Unavailable as error:
            logger.warning("the queue did not confirm the end of a delivery; it may come again", error=error.message)

    async def _let_wait(self, run: Run) -> None:
        """The run goes back to the queue: it has no owner until it is delivered again, and is not abandoned."""
        try:
            await self._store.extend_leases([run.trace_id], lease_s=waiting_lease_s(run, self._settings.lease_s))
        except Unavailable as error:
            logger.warning("lease of a waiting run not extended", error=error.message)

    async def _give_up(self, delivery: Delivery) -> None:
        """The last delivery came to nothing: tell whoever waits."""
        run = delivery.run
        logger.error("run given up: it was delivered for the last time", delivery=delivery.delivery_count)
        why = Unavailable(f"the debate could not be finished in {delivery.delivery_count} tries; retry")
        try:
            publisher = await self._bus.open_run(run.trace_id, resume=True)
            await settle(self._store, publisher, run, failed(why, Usage()))
        except AifactoryError as error:
            logger.error("and that could not be recorded", error=error.message)

    async def _work_patiently(self, delivery: Delivery) -> float | None:
        """Wait out a database that is away, until the run's deadline: a run has only a few deliveries."""
        run, tries = delivery.run, 0
        while True:
            try:
                return await self._work(delivery, resumed=delivery.delivery_count > 1 or tries > 0)
            except Unavailable as error:
                pause_s = min(_RETRY_S * 2**tries, self._settings.lease_s / 3)
                if run.seconds_left < pause_s:
                    raise
                logger.warning("run waits: a part that it needs is away", error=error.message, tries=tries)
                await self._let_wait(run)
                await asyncio.sleep(pause_s)
                tries += 1

    async def _work(self, delivery: Delivery, *, resumed: bool) -> float | None:
        """Execute and settle a run. Returns None when it has ended, else after how many seconds to try again."""
        run = delivery.run
        if run.trace_id in self._active:
            return self._settings.queue_ack_wait_s  # delivered again although we are at it: a late heartbeat
        self._active[run.trace_id] = None
        try:
            record = await self._store.find(run.trace_id)
            if record is None or record.status.terminal or record.attempt > run.attempt:
                logger.info("run needs no work", status=record.status.value if record else "unknown")
                return await self._after_end(delivery, record, resumed=resumed)
            observe("aifactory_queue_seconds", max(0.0, time.time() - run.started))
            await self._execute_and_settle(run, resumed=resumed)
            return None
        finally:
            self._active.pop(run.trace_id, None)

    async def _after_end(self, delivery: Delivery, record: RunRecord | None, *, resumed: bool) -> float | None:
        """A worker may have died between the record of a run's end and its `finished`: then readers still wait."""
        if record is None or not resumed:
            return None
        # Unless that worker lives and is just about to say so: look again later.
        fresh_s = record.updated_at + self._settings.queue_ack_wait_s - time.time()
        if fresh_s > 0 and not delivery.last:
            return fresh_s
        await tell_end(self._store, self._bus, record)
        return None

    async def _execute_and_settle(self, run: Run, *, resumed: bool) -> None:
        publisher = await self._bus.open_run(run.trace_id, resume=resumed)
        try:
            spec = DebateSpec.model_validate(run.question.debate)
        except ValidationError as error:
            wrong = BadRequest(f"the debate specification is not valid: {error}", param="x_debate")
            await settle(self._store, publisher, run, failed(wrong, Usage()))
            return
        debate = DebateRun(
            run=run,
            spec=spec,
            publisher=publisher,
            replicas=self._replicas,
            store=self._store,
            task_retries=self._settings.task_retries,
            resumed=resumed,
            confirm=partial(self._extend, [run.trace_id]),
        )
        try:
            if not await self._execute(debate) and not debate.lost:
                if debate.unrecorded is not None and debate.stopped_by is None:
                    raise debate.unrecorded  # not the debate's fault: it is held again
                await self._settle_unfinished(debate)
        finally:
            await debate.close()

    async def _execute(self, debate: DebateRun) -> bool:
        """Execute the job. True when the run has its answer."""
        run = debate.run
        execution = self._runner.prepare(debate, on_created=lambda dagster_id: self._note(run, dagster_id))
        self._active[run.trace_id] = execution
        early = self._early.pop(run.trace_id, None)
        if early is not None:
            self._stop(execution, Cancelled(f"the run was cancelled: {early}"))
        try:
            ended = await self._until_end(execution)
        except (OwnedElsewhere, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - the caller must get an end, whatever broke; the log has the cause
            logger.opt(exception=error).error("the debate's job broke")
            if isinstance(error, DBAPIError):
                debate.unrecorded = Unavailable("Dagster's records are away: the debate is held again")
            debate.error = debate.error or (error if isinstance(error, AifactoryError) else None)
            return False
        logger.info("debate job ended", dagster_run_id=ended.run_id, status=ended.status.value)
        return ended.status is DagsterRunStatus.SUCCESS

    async def _until_end(self, execution: Execution) -> DagsterRun:
        """Wait for the job in its thread; stop it at the run's deadline or when this worker must go."""
        run = execution.debate.run
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._runner.execute, execution)
        try:
            async with asyncio.timeout(run.seconds_left) as deadline:
                return await asyncio.shield(work)
        except TimeoutError:
            if not deadline.expired():
                raise
            allowed = f"{run.deadline - run.started:g} s"
            self._stop(execution, DeadlineExceeded(f"the debate did not finish within its {allowed}"))
        except asyncio.CancelledError:
            execution.interrupt()
            await asyncio.wait([work], timeout=_STOP_S)
            raise
        return await asyncio.wait_for(asyncio.shield(work), _STOP_S)

    async def _settle_unfinished(self, debate: DebateRun) -> None:
        """Record why there is no answer, and finish. Raises errors.Unavailable: then the run comes again."""
        if debate.usage.total_tokens and not debate.settling:
            await debate.emit(UsageEvent(usage=debate.usage))
        await debate.settle(debate.without_answer())

    def _on_cancel(self, trace_id: str, reason: str) -> None:
        execution = self._active.get(trace_id)
        if execution is not None:
            self._stop(execution, Cancelled(f"the run was cancelled: {reason}"))
            return
        self._early[trace_id] = reason
        while len(self._early) > _EARLY_CANCELS:
            self._early.popitem(last=False)

    def _stop(self, execution: Execution, why: AifactoryError) -> None:
        if self._closed or execution.debate.stopped_by is not None or execution.debate.settling:
            return
        execution.debate.stopped_by = why
        with bound(execution.debate.run.trace_id):
            logger.info("stopping the debate", why=why.message)
            self._aside.spawn(self._in_thread(execution.cancel), name="stop run")

    def _note(self, run: Run, dagster_run_id: str) -> None:
        if not self._closed:
            self._aside.spawn(self._take(run.trace_id, dagster_run_id), name="take run")

    async def _take(self, trace_id: str, dagster_run_id: str) -> None:
        """The run waits no more: from here on its lease is short, and this worker keeps it."""
        await self._extend([trace_id])
        try:
            await self._store.note_dagster_run(trace_id, dagster_run_id)
        except Unavailable as error:
            logger.warning("the Dagster run of a run was not noted", trace_id=trace_id, error=error.message)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            await self._extend([trace_id for trace_id, execution in self._active.items() if execution is not None])

    async def _extend(self, trace_ids: list[str]) -> None:
        owned_until = time.time() + self._settings.lease_s
        try:
            ours = await self._store.extend_leases(trace_ids, lease_s=self._settings.lease_s)
        except Unavailable as error:
            logger.warning("leases could not be extended", runs=len(trace_ids), error=error.message)
            return
        for trace_id in trace_ids:
            execution = self._active.get(trace_id)
            if execution is None:
                continue
            if trace_id in ours:
                execution.debate.owned_until = owned_until
            elif not (execution.debate.settling or execution.debate.lost):
                logger.warning("run is not ours any more: stopping it", trace_id=trace_id)
                execution.debate.lose()
                if not self._closed:  # else it is being interrupted anyway
                    self._aside.spawn(self._in_thread(execution.interrupt), name="stop lost run")
