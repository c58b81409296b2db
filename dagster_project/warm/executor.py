"""A Dagster executor that runs the mapped ops of one run side by side in one process.

Dagster's own choices are one step at a time, or a process per step. Here each step has a thread of the worker's
pool, and the body of an async op runs on the worker's one asyncio loop, where its connections live and where it
can be cancelled in the middle of an await. Events go back to Dagster through a queue.

This stands on private API of dagster 1.13: tests/contracts/test_dagster_private_api.py guards each name used.
"""

import asyncio
import concurrent.futures
import queue
import threading
import time
from collections.abc import Awaitable, Iterator
from typing import Any, Final, TypeVar

from dagster import DagsterEvent, ExecutorDefinition, Failure, InitExecutorContext
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import EngineEventData
from dagster._core.execution.context.system import PlanExecutionContext, PlanOrchestrationContext, StepExecutionContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.execute_plan import _trigger_hook, dagster_event_sequence_for_step
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.base import Executor

from dagster_project.warm.thrift import SharedData

T = TypeVar("T")
_POLL_S: Final = 1.0  # how often a waiting run looks for interrupts
_LEAST_POLL_S: Final = 0.01
_DRAIN_S: Final = 30.0  # how long a run that broke waits for its other steps to end


class StepCancelled(Failure):
    """A step that was stopped. A Failure, because Dagster would retry an interrupt raised inside an op."""

    def __init__(self) -> None:
        super().__init__("cancelled", allow_retries=False)


class StopSwitch:
    """Stops the steps of one run. Thread-safe; stopping twice is the same as once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._begun: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()  # kept here, because the loop holds them weakly
        self.stopped = threading.Event()
        self.wake: queue.SimpleQueue[Any] | None = None

    def stop(self) -> None:
        """Cancel what runs now, and let nothing start any more."""
        with self._lock:
            self.stopped.set()
        self._loop.call_soon_threadsafe(self._cancel_tasks)
        if self.wake is not None:
            self.wake.put((None, _WAKE))

    def run(self, awaitable: Awaitable[T]) -> T:
        """Run an awaitable on the loop and wait for its end, cleaning up included. Raises StepCancelled."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(self._start, awaitable, done)
        try:
            while True:
                try:
                    return done.result(timeout=_POLL_S)
                except TimeoutError:
                    if done.done():
                        return done.result()  # it may have failed with a TimeoutError of its own
                    if self._loop.is_closed():
                        raise StepCancelled from None  # nobody is left to finish the task
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise StepCancelled from None

    def _cancel_tasks(self) -> None:
        for task in self._begun:
            task.cancel()

    def _start(self, awaitable: Awaitable[T], done: "concurrent.futures.Future[T]") -> None:
        async def body() -> T:
            # A task cancelled before it begins would leave the op's coroutine never awaited: begin it, then cancel.
            self._begun.add(task)
            if self.stopped.is_set():
                task.cancel()
            return await awaitable

        task = self._loop.create_task(body())
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._finish(ended, done))

    def _finish(self, task: "asyncio.Task[T]", done: "concurrent.futures.Future[T]") -> None:
        self._tasks.discard(task)
        self._begun.discard(task)
        if task.cancelled():
            done.set_exception(concurrent.futures.CancelledError())
        elif (error := task.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(task.result())


class _OnWorkerLoop:
    """Stands where Dagster keeps the event loop of a run, and sends async ops to the worker's loop."""

    def __init__(self, switch: StopSwitch) -> None:
        self._switch = switch

    def run_until_complete(self, awaitable: Awaitable[T]) -> T:
        return self._switch.run(awaitable)


class StepHost:
    """Where steps run: a pool of threads and the worker's loop. The worker owns it and closes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, steps: int, steps_per_run: int) -> None:
        self.loop = loop
        self.steps_per_run = steps_per_run
        self.pool = concurrent.futures.ThreadPoolExecutor(steps, thread_name_prefix="dagster-step")
        self.shared = SharedData()
        self._switches: dict[str, StopSwitch] = {}

    def switch(self, run_id: str) -> StopSwitch:
        """The stop switch of a Dagster run; made at first use, kept until `release`."""
        return self._switches.setdefault(run_id, StopSwitch(self.loop))

    def release(self, run_id: str) -> None:
        self._switches.pop(run_id, None)

    def close(self) -> None:
        """End the threads; steps that still run are stopped first."""
        for switch in list(self._switches.values()):
            switch.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)


class _Marker:
    """A queue item that is not an event."""


_DONE: Final = _Marker()
_WAKE: Final = _Marker()
_Item = tuple[str | None, DagsterEvent | BaseException | _Marker]


class ThreadedExecutor(Executor):
    """Runs the ready steps of a run at the same time, up to `host.steps_per_run`."""

    def __init__(self, host: StepHost | None) -> None:
        self._host = host

    @property
    def retries(self) -> RetryMode:
        return RetryMode.ENABLED  # steps ask for it themselves (asking.py): they know whether a token went out

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        if self._host is None:
            raise Failure("this job runs on the warm worker only: ask for a debate through the API (x_route=workflow)")
        switch = self._host.switch(plan_context.run_id)
        job_context = PlanExecutionContext(
            plan_data=plan_context.plan_data,
            execution_data=self._host.shared.of(plan_context),
            log_manager=plan_context.log,
            output_capture=plan_context.output_capture,
            event_loop=_OnWorkerLoop(switch),  # type: ignore[arg-type]  # all that Dagster does with it
        )
        steps = _Steps(self._host, switch)
        try:
            with (
                InstanceConcurrencyContext(job_context.instance, job_context.dagster_run) as slots,
                execution_plan.start(
                    retry_mode=self.retries, max_concurrent=self._host.steps_per_run, instance_concurrency_context=slots
                ) as active,
            ):
                yield from steps.drive(job_context, active)
        finally:
            steps.drain()


class _Steps:
    """The steps of one run: starts those that are ready, hands their events on."""

    def __init__(self, host: StepHost, switch: StopSwitch) -> None:
        self._host = host
        self._switch = switch
        self._events: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._running: set[str] = set()
        switch.wake = self._events

    def drive(self, job_context: PlanExecutionContext, active: ActiveExecution) -> Iterator[DagsterEvent]:
        stopping = False
        while self._running or not (stopping or active.is_complete):
            if not stopping and (self._switch.stopped.is_set() or active.check_for_interrupts()):
                stopping = True
                active.mark_interrupted()
                told = EngineEventData.interrupted(sorted(self._running))
                yield DagsterEvent.engine_event(job_context, "Cancelled: stopping the running steps", told)
                continue
            if not stopping:
                for step in active.get_steps_to_execute(limit=self._host.steps_per_run - len(self._running)):
                    self._running.add(step.key)
                    self._host.pool.submit(self._run_step, job_context.for_step(step, active.get_known_state()))
                yield from active.concurrency_event_iterator(job_context)
            try:
                key, item = self._events.get(timeout=self._patience(active))
            except queue.Empty:
                continue
            if isinstance(item, DagsterEvent):
                yield item
                active.handle_event(item)
            elif key is not None:
                self._running.discard(key)
                if isinstance(item, BaseException):
                    raise item
                active.verify_complete(job_context, key)
                yield from active.plan_events_iterator(job_context)
        if stopping:
            raise DagsterExecutionInterruptedError

    def _patience(self, active: ActiveExecution) -> float:
        """How long there is nothing to do but to wait for events, in seconds: until a step's pause is over, say."""
        pause = float(active.sleep_interval())  # type: ignore[no-untyped-call]
        if self._running and pause <= 0:
            return _POLL_S
        return min(_POLL_S, max(_LEAST_POLL_S, pause))

    def drain(self) -> None:
        """Stop and wait for steps that still run, because their run has broken."""
        if not self._running:
            return
        self._switch.stop()
        give_up = time.monotonic() + _DRAIN_S
        while self._running and time.monotonic() < give_up:
            try:
                key, item = self._events.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if key is not None and not isinstance(item, DagsterEvent):
                self._running.discard(key)

    def _run_step(self, context: StepExecutionContext) -> None:
        key, told = context.step.key, []
        try:
            for event in dagster_event_sequence_for_step(context):
                told.append(event)
                self._events.put((key, event))
            for event in _trigger_hook(context, told):
                self._events.put((key, event))
            self._events.put((key, _DONE))
        except BaseException as error:  # noqa: BLE001 - handed to the run's thread, which raises it
            self._events.put((key, error))


def threaded(host: StepHost | None) -> ExecutorDefinition:
    """The executor bound to a worker's threads and loop; None where only the definition is wanted (webserver)."""

    def create(_context: InitExecutorContext) -> Executor:
        return ThreadedExecutor(host)

    return ExecutorDefinition(name="threads", executor_creation_fn=create, description="Mapped ops side by side in a warm worker")
