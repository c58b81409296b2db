"""Executes runs on this process's Dagster, each to its end: keeps its lease, hears cancels and its deadline, settles it once.

The warm worker does so with what it pulls from the queue, a process of its own with the one run it was started for.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from dagster import DagsterRun, DagsterRunStatus
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from dagster_project.debate import DebateSpec
from dagster_project.resources import DebateRun
from dagster_project.running.ends import give_up, let_wait, overdue, tell_later, wait_out
from dagster_project.running.runner import DebateRunner, Execution, OwnedElsewhere
from serve_app.answers import failed
from serve_app.errors import AifactoryError, BadRequest, Cancelled, Unavailable
from serve_app.events import Usage, UsageEvent
from serve_app.lifecycle.retry import Backoff
from serve_app.lifecycle.settle import settle
from serve_app.ports import EventBus, Replicas, RunStore
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.spans import waited
from serve_app.tasks import TaskOwner
from serve_app.telemetry import bound, logger, observe

T = TypeVar("T")
_STOP_S: Final = 30.0  # how long a stopped run may take to come to rest
_EARLY_CANCELS: Final = 1024


class Conductor:
    """Executes a few runs at a time in this process, until `close`."""

    def __init__(
        self, settings: Settings, *, store: RunStore, bus: EventBus, replicas: Replicas, runner: DebateRunner, runs: int
    ) -> None:
        self._settings = settings
        self._store = store
        self._bus = bus
        self._replicas = replicas
        self._runner = runner
        self._threads = ThreadPoolExecutor(2 * runs, thread_name_prefix="dagster-run")
        self._aside = TaskOwner()
        self._active: dict[str, Execution | None] = {}  # by trace_id; None until it can be stopped
        self._early: OrderedDict[str, str] = OrderedDict()  # cancels of runs that are not here (yet)
        self._closed = False

    def reconfigure(self, settings: Settings) -> None:
        """Take over changed live settings; runs under way keep the old ones."""
        self._settings = settings

    async def start(self) -> None:
        """Hear cancels, and keep the leases of what is executed here."""
        await self._bus.on_cancel(self._on_cancel)
        self._aside.spawn(self._keep_leases(), name="extend leases")

    def stop_hearing(self) -> None:
        """Runs are handed back from now on: neither cancels nor deadlines end them here."""
        self._closed = True

    async def close(self) -> None:
        """Whoever waits for a run must have been cancelled before: that interrupts it."""
        self._closed = True
        await self._aside.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def work(self, run: Run, *, resumed: bool, last: bool) -> float | None:
        """Take the run to its end. Returns None when it has one, else after how many seconds to try again.

        A part that is away is waited out until the run's deadline: a run has only a few tries. Raises OwnedElsewhere,
        and errors.Unavailable.
        """

        async def attempt(again: bool) -> float | None:
            return await self._work(run, resumed=resumed or again, last=last)

        return await wait_out(attempt, self.let_wait, run, longest_s=self._settings.lease_s / 3)

    async def let_wait(self, run: Run) -> None:
        """The run goes back to the queue, or waits for a part that is away."""
        await let_wait(self._store, run, lease_s=self._settings.lease_s)

    async def give_up(self, run: Run, tries: int) -> None:
        """The last try came to nothing."""
        await give_up(self._store, self._bus, run, tries)

    async def _work(self, run: Run, *, resumed: bool, last: bool) -> float | None:
        if run.trace_id in self._active:
            raise OwnedElsewhere("run is executed here already: it was delivered again for want of a heartbeat")
        self._active[run.trace_id] = None
        try:
            record = await self._store.find(run.trace_id)
            if record is None or record.status.terminal or record.attempt > run.attempt:
                logger.info("run needs no work", status=record.status.value if record else "unknown")
                if record is None or not resumed:
                    return None
                return await tell_later(self._store, self._bus, record, patience_s=0 if last else self._settings.queue_ack_wait_s)
            observe("aifactory_queue_seconds", max(0.0, time.time() - run.started))
            waited(run, again=resumed)
            await self._execute_and_settle(run, resumed=resumed, cancel_reason=record.cancel_reason)
            return None
        finally:
            self._active.pop(run.trace_id, None)

    async def _execute_and_settle(self, run: Run, *, resumed: bool, cancel_reason: str | None) -> None:
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
            backoff=_backoff(self._settings),
            resumed=resumed,
            confirm=partial(self._extend, [run.trace_id]),
        )
        try:
            if not await self._execute(debate, cancel_reason) and not debate.lost:
                if debate.unrecorded is not None and debate.stopped_by is None:
                    raise debate.unrecorded  # not the debate's fault: it is held again
                await self._settle_unfinished(debate)
        finally:
            await debate.close()

    async def _execute(self, debate: DebateRun, cancel_reason: str | None) -> bool:
        """Execute the job, unless the run was cancelled while it waited. True when the run has its answer."""
        run = debate.run
        execution = self._runner.prepare(debate, on_created=lambda dagster_id: self._note(run, dagster_id))
        self._active[run.trace_id] = execution
        if (early := self._early.pop(run.trace_id, cancel_reason)) is not None:
            debate.stopped_by = Cancelled.because(early)
            execution.cancel()  # it has no record yet, so this does not block: the record will be made as CANCELED
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
            self._stop(execution, overdue(run))
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
            self._stop(execution, Cancelled.because(reason))
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
            try:
                await self._extend([trace_id for trace_id, execution in self._active.items() if execution is not None])
            except Exception as error:  # noqa: BLE001 - this loop keeps every run here alive; it must outlive any fault
                logger.opt(exception=error).error("leases not extended")

    async def _extend(self, trace_ids: list[str]) -> None:
        owned_until = time.time() + self._settings.lease_s
        try:
            leases = await self._store.extend_leases(trace_ids, lease_s=self._settings.lease_s)
        except Unavailable as error:
            logger.warning("leases could not be extended", runs=len(trace_ids), error=error.message)
            return
        for trace_id in trace_ids:
            if (execution := self._active.get(trace_id)) is None:
                continue
            if trace_id in leases.ours:
                execution.debate.owned_until = owned_until
                if trace_id in leases.cancels:  # its message did not reach us
                    self._on_cancel(trace_id, leases.cancels[trace_id])
            elif not (execution.debate.settling or execution.debate.lost):
                logger.warning("run is not ours any more: stopping it", trace_id=trace_id)
                execution.debate.lose()
                if not self._closed:  # else it is being interrupted anyway
                    self._aside.spawn(self._in_thread(execution.interrupt), name="stop lost run")


def _backoff(settings: Settings) -> Backoff:
    """When a step of a debate asks a replica again."""
    return Backoff(settings.task_retries, settings.retry_backoff_s, settings.retry_backoff_max_s)
