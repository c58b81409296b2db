"""Executes the job `debate` in this process, warm: no code location to load, no process to start.

The run is created with its code location's name, so that Dagster's UI shows it with its job and can launch it again.
Everything here blocks: the pull loop calls it from threads.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.execution.api import execute_run_iterator
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from dagster_project.executor import StepHost, StopSwitch
from dagster_project.home import DEFINITIONS_MODULE, LOCATION
from dagster_project.jobs import JOB, QUIET_CONFIG, RUN_CONFIG, debate_job
from dagster_project.resources import DebateRun, Desk
from dagster_project.storage import PooledRunStorage
from serve_app.runs import Run
from serve_app.telemetry import logger

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
_NAMESPACE: Final = uuid.UUID("7f0a7c1e-5f0b-4c53-9a55-2d7b2c9f5a10")
_LOCK_SPACE: Final = 7  # keeps our advisory locks apart from others in the database
_MAX_TRIES: Final = 32


class OwnedElsewhere(Exception):
    """Another worker executes this run right now."""


def dagster_run_id(trace_id: str, attempt: int, take: int = 1) -> str:
    """The name of a Dagster run follows from the run, so a second delivery finds the first one's record."""
    return str(uuid.uuid5(_NAMESPACE, f"{trace_id}/{attempt}/{take}"))


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
            self._instance.report_run_canceling(now, "cancelled through the API")


class DebateRunner:
    """Creates and executes Dagster runs on a worker's threads and loop."""

    def __init__(self, instance: DagsterInstance, host: StepHost) -> None:
        self.instance = instance
        self.host = host
        self.desk = Desk()
        self._job = debate_job(self.desk, host)
        repository = ReconstructableRepository.for_module(DEFINITIONS_MODULE, fn_name="defs", working_directory=_ROOT)
        self._python_origin = ReconstructableJob(repository=repository, job_name=JOB).get_python_origin()
        target = LoadableTargetOrigin(module_name=DEFINITIONS_MODULE, working_directory=_ROOT, attribute=None)
        location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name=LOCATION)
        name = repository.get_definition().name
        self._job_origin = RemoteRepositoryOrigin(code_location_origin=location, repository_name=name).get_job_origin(JOB)

    def prepare(self, debate: DebateRun, *, on_created: Callable[[str], None] | None = None) -> Execution:
        """An execution that can be cancelled from now on; `execute` starts it.

        `on_created` gets the Dagster run's id, on the worker's loop, as soon as there is a record.
        """
        return Execution(debate, self.instance, self.host, on_created)

    def warm_up(self) -> None:
        """Pay once for what Dagster does at its first run: a run in memory that finds no debate, and fails at its plan."""
        with DagsterInstance.ephemeral() as nowhere:
            run = nowhere.create_run_for_job(job_def=self._job, run_config=QUIET_CONFIG)
            try:
                for _event in execute_run_iterator(InMemoryJob(self._job), run, nowhere):
                    pass
            finally:
                self.host.release(run.run_id)

    def execute(self, execution: Execution) -> DagsterRun:
        """Run the debate to its end and return the Dagster run's record. Blocks for as long as the run lasts.

        Raises OwnedElsewhere when another worker has it, and whatever Dagster's storage raises.
        """
        debate = execution.debate
        with self._owned(debate.run.trace_id):
            run = self._create(debate.run, taken_up=debate.resumed)
            try:
                if execution.created(run):
                    self._drive(execution, run)
            finally:
                self.host.release(run.run_id)
            ended = self.instance.get_run_by_id(run.run_id)
        if ended is None:
            raise LookupError(f"Dagster run {run.run_id} vanished from its storage")
        return ended

    def _drive(self, execution: Execution, run: DagsterRun) -> None:
        self.desk.put(run.run_id, execution.debate)
        try:
            for event in execute_run_iterator(InMemoryJob(self._job), run, self.instance):
                if event.event_type is DagsterEventType.RUN_START:
                    execution.started()
        finally:
            self.desk.remove(run.run_id)

    def _create(self, run: Run, *, taken_up: bool) -> DagsterRun:
        """The record of a new Dagster run: the first take, or a child of the one that a dead worker left."""
        parent: DagsterRun | None = None
        for take in range(1, _MAX_TRIES):
            run_id = dagster_run_id(run.trace_id, run.attempt, take)
            known = self.instance.get_run_by_id(run_id) if taken_up or parent else None
            if known is None:
                try:
                    return self._create_record(run, run_id, take, parent)
                except DagsterRunAlreadyExists:
                    known = self.instance.get_run_by_id(run_id)
            if known is not None:
                if not known.is_finished:
                    self.instance.report_run_failed(known, "its worker is gone; the run was delivered again")
                parent = known
        raise RuntimeError(f"run {run.trace_id} was taken up {_MAX_TRIES} times without an end")

    def _create_record(self, run: Run, run_id: str, take: int, parent: DagsterRun | None) -> DagsterRun:
        root = (parent.root_run_id or parent.run_id) if parent else None
        tags = {"trace_id": run.trace_id, "req_id": run.req_id, "project": run.project, "route": run.route}
        tags |= {"attempt": str(run.attempt), "take": str(take)}
        if parent is not None and root is not None:
            tags |= {PARENT_RUN_ID_TAG: parent.run_id, ROOT_RUN_ID_TAG: root}
            logger.warning("run taken up again", take=take, parent=parent.run_id)
        return self.instance.create_run_for_job(
            job_def=self._job,
            run_id=run_id,
            run_config=RUN_CONFIG,
            tags=tags,
            parent_run_id=parent.run_id if parent else None,
            root_run_id=root,
            remote_job_origin=self._job_origin,
            job_code_origin=self._python_origin,
        )

    @contextmanager
    def _owned(self, trace_id: str) -> Iterator[None]:
        """Hold the run: a second delivery must not fail it while it is healthy. Postgres frees it if this process dies."""
        storage = self.instance.run_storage
        assert isinstance(storage, PooledRunStorage)
        asked = {"name": trace_id, "space": _LOCK_SPACE}
        with storage.engine.connect() as connection:
            lock = sqlalchemy.text("SELECT pg_try_advisory_lock(hashtextextended(:name, :space))")
            if not connection.execute(lock, asked).scalar():
                raise OwnedElsewhere(f"run {trace_id} is executed by another worker")
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(hashtextextended(:name, :space))"), asked)
