"""Executes the job `debate` in this process, warm: no code location to load, no process to start.

The run is created with its code location's name, so that Dagster's UI shows it with its job and can launch it again.
Everything here blocks: the pull loop calls it from threads.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus

from dagster_project.jobs import QUIET_CONFIG, debate_job
from dagster_project.resources import OUTPUTS, DebateRun, Desk, Embed
from dagster_project.running.takes import Takes
from dagster_project.warm.executor import StepHost, StopSwitch
from dagster_project.warm.step_outputs import RunOutputs, StepOutputs
from dagster_project.warm.storage import PooledRunStorage
from dagster_project.warm.thrift import JobRuns
from serve_app.runs import Run

_LOCK_SPACE: Final = 7  # keeps our advisory locks apart from others in the database
_LOCK: Final = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:name, :space))")
_UNLOCK: Final = sqlalchemy.text("SELECT pg_advisory_unlock(hashtextextended(:name, :space))")


class OwnedElsewhere(Exception):
    """Another worker executes this run right now."""


class Execution:
    """One debate being executed. `cancel` may be called from any thread, at any time, more than once."""

    def __init__(
        self, debate: DebateRun, instance: DagsterInstance, host: StepHost, on_created: Callable[[str], None] | None
    ) -> None:
        self.debate = debate
        self._instance = instance
        self._host = host
        self._on_created = on_created
        self._lock = threading.Lock()
        self._dagster_run: DagsterRun | None = None
        self._switch: StopSwitch | None = None
        self._started = False
        self._cancelled = False
        self._interrupted = False

    def cancel(self) -> None:
        """End the Dagster run as CANCELED: its ops stop in mid-await and their replica streams close. Blocks shortly."""
        try:
            with self._lock:
                self._cancelled = True
                if self._dagster_run is not None and self._started:
                    self._report_canceling(self._dagster_run)
        finally:
            if self._switch is not None:
                self._switch.stop()  # even if Postgres is away: the engine must not go on

    def interrupt(self) -> None:
        """Stop the ops without calling it a cancel: the Dagster run ends as FAILURE. For a worker that must go."""
        with self._lock:
            self._interrupted = True
            if self._switch is not None:
                self._switch.stop()

    def created(self, run: DagsterRun) -> bool:
        """The run has its record. False when it was cancelled before, and must not be executed."""
        with self._lock:
            self._dagster_run = run
            self._switch = self._host.switch(run.run_id)
            if self._on_created is not None:
                self._host.loop.call_soon_threadsafe(self._on_created, run.run_id)
            if self._interrupted:
                self._switch.stop()
            if self._cancelled:
                self._instance.report_run_canceled(run, "cancelled before it started")
            return not self._cancelled

    def started(self) -> None:
        """The run has its start event. CANCELING must come after it, or the start would hide it."""
        with self._lock:
            self._started = True
            if self._cancelled and self._dagster_run is not None:
                self._report_canceling(self._dagster_run)

    def _report_canceling(self, run: DagsterRun) -> None:
        now = self._instance.get_run_by_id(run.run_id)
        if now is not None and not now.is_finished and now.status is not DagsterRunStatus.CANCELING:
            why = self.debate.stopped_by
            self._instance.report_run_canceling(now, why.message if why else "cancelled")


class DebateRunner:
    """Creates and executes Dagster runs on a worker's threads and loop."""

    def __init__(self, instance: DagsterInstance, host: StepHost, *, embed: Embed | None = None, api_url: str = "") -> None:
        """`embed` is for the strategy consensus; `api_url` (…/v1) makes the trace_id of an answer a link in the UI."""
        self.instance = instance
        self.host = host
        self.desk = Desk(api_url)
        self._embed = embed
        self._job = debate_job(self.desk, host)
        self._takes = Takes(instance, self._job)
        self._runs = JobRuns(self._job, instance)
        storage = instance.run_storage
        assert isinstance(storage, PooledRunStorage)
        self._engine = storage.engine
        self._outputs = StepOutputs(storage.engine)

    def prepare(self, debate: DebateRun, *, on_created: Callable[[str], None] | None = None) -> Execution:
        """An execution that can be cancelled from now on; `execute` starts it.

        `on_created` gets the Dagster run's id, on the worker's loop, as soon as there is a record.
        """
        debate.embed = debate.embed or self._embed
        return Execution(debate, self.instance, self.host, on_created)

    def warm_up(self) -> None:
        """Make the table of step outputs, and pay once for what Dagster does at its first run.

        That is a run in memory, which finds no debate and fails at its plan.
        """
        self._outputs.create()
        with DagsterInstance.ephemeral() as nowhere:
            run = nowhere.create_run_for_job(job_def=self._job, run_config=QUIET_CONFIG)
            try:
                for _event in JobRuns(self._job, nowhere).events(run):
                    pass
            finally:
                self.host.release(run.run_id)

    def begin(self, run: Run) -> DagsterRun:
        """The record of a run that another process is to execute. Raises OwnedElsewhere while one does. Blocks."""
        with self._owned(run.trace_id):
            return self._takes.begin(run, taken_up=True).run

    def execute(self, execution: Execution) -> DagsterRun:
        """Run the debate to its end and return the Dagster run's record. Blocks for as long as the run lasts.

        Raises OwnedElsewhere when another worker has it, and whatever Dagster's storage raises.
        """
        debate = execution.debate
        with self._owned(debate.run.trace_id):
            self._outputs.create()
            take = self._takes.begin(debate.run, taken_up=debate.resumed)
            run = take.run
            debate.take, debate.dagster_run_id = take.number, run.run_id
            debate.outputs = RunOutputs(self._outputs, take.root_run_id, OUTPUTS)
            if take.number > 1:
                debate.recall()
            try:
                if execution.created(run) and self._drive(execution, run):
                    return run.with_status(DagsterRunStatus.SUCCESS)
            finally:
                self.host.release(run.run_id)
            ended = self.instance.get_run_by_id(run.run_id)
        if ended is None:
            raise LookupError(f"Dagster run {run.run_id} vanished from its storage")
        if ended.status is not DagsterRunStatus.SUCCESS:
            self._say_why(debate, ended)
        return ended

    def _say_why(self, debate: DebateRun, ended: DagsterRun) -> None:
        """Dagster's own last event names the steps that broke; the UI's reader wants to know why there is no answer."""
        if debate.settling:
            return  # a stop came too late for the commit: there is one
        why = debate.stopped_by or debate.error or debate.unrecorded
        if why is not None:
            self.instance.report_engine_event(f"No answer: {why.code}: {why.message}", ended, cls=type(self))
            self.instance.add_run_tags(ended.run_id, {"ended_by": why.code})

    def _drive(self, execution: Execution, run: DagsterRun) -> bool:
        """Execute the job to its end. True when it is recorded as a success."""
        success = False
        self.desk.put(run.run_id, execution.debate)
        try:
            for event in self._runs.events(run):
                if event.event_type is DagsterEventType.RUN_START:
                    execution.started()
                success = success or event.event_type is DagsterEventType.RUN_SUCCESS
        finally:
            self.desk.remove(run.run_id)
        return success

    @contextmanager
    def _owned(self, trace_id: str) -> Iterator[None]:
        """Hold the run: a second delivery must not fail it while it is healthy. Postgres frees it if this process dies."""
        asked = {"name": trace_id, "space": _LOCK_SPACE}
        with self._engine.connect() as connection:
            if not connection.execute(_LOCK, asked).scalar():
                raise OwnedElsewhere(f"run {trace_id} is executed by another worker")
            try:
                yield
            finally:
                connection.execute(_UNLOCK, asked)
