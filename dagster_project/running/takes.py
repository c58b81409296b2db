"""The Dagster runs of one run: its first take, and a child for each worker that died, which skips the finished steps.

This stands on private API of dagster 1.13: tests/contracts/test_dagster_private_api.py guards each name used.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dagster import DagsterError, DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, JobDefinition
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_shared.check import CheckError

from dagster_project.home import DEFINITIONS_MODULE, LOCATION
from dagster_project.jobs import JOB, RUN_CONFIG
from serve_app.runs import Run
from serve_app.telemetry import logger

_ROOT: Final = str(Path(__file__).resolve().parents[2])
_NAMESPACE: Final = uuid.UUID("7f0a7c1e-5f0b-4c53-9a55-2d7b2c9f5a10")
_MAX_TAKES: Final = 32
_MAPPED: Final = {"plan": "argue", "review_1": "argue_2", "review_2": "argue_3"}  # which step opens which tasks
_UNTOUCHED: Final = (DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING)


def dagster_run_id(trace_id: str, attempt: int, take: int = 1) -> str:
    """The name of a Dagster run follows from the run, so a second delivery finds the first one's record."""
    return str(uuid.uuid5(_NAMESPACE, f"{trace_id}/{attempt}/{take}"))


@dataclass(frozen=True, slots=True)
class Take:
    """A Dagster run to be executed; `number` is 1 for the first, 2, 3 … for its children."""

    run: DagsterRun
    number: int

    @property
    def root_run_id(self) -> str:
        """The first take, under which the outputs of all takes are kept."""
        return self.run.root_run_id or self.run.run_id


class Takes:
    """Makes the records. They carry their code location, so that Dagster's UI shows them with their job. Blocks."""

    def __init__(self, instance: DagsterInstance, job: JobDefinition) -> None:
        self._instance = instance
        self._job = job
        self._first: DagsterRun | None = None  # what all first takes have in common: they have the same plan
        repository = ReconstructableRepository.for_module(DEFINITIONS_MODULE, fn_name="defs", working_directory=_ROOT)
        self._python_origin = ReconstructableJob(repository=repository, job_name=JOB).get_python_origin()
        target = LoadableTargetOrigin(module_name=DEFINITIONS_MODULE, working_directory=_ROOT, attribute=None)
        location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name=LOCATION)
        name = repository.get_definition().name
        self._job_origin = RemoteRepositoryOrigin(code_location_origin=location, repository_name=name).get_job_origin(JOB)

    def begin(self, run: Run, *, taken_up: bool) -> Take:
        """The record to execute: new, or made by Dagster's UI, or the child of one that a dead worker left."""
        parent: DagsterRun | None = None
        for number in range(1, _MAX_TAKES):
            run_id = dagster_run_id(run.trace_id, run.attempt, number)
            if number == 1 and run.dagster_run_id is not None:
                run_id = run.dagster_run_id
            known = self._instance.get_run_by_id(run_id) if taken_up or parent or run.dagster_run_id else None
            if known is None:
                try:
                    return Take(self._create(run, run_id, number, parent), number)
                except DagsterRunAlreadyExists:
                    known = self._instance.get_run_by_id(run_id)
            if known is not None and known.status in _UNTOUCHED:
                return Take(self._adopt(known, run, number), number)
            if known is not None:
                if not known.is_finished:
                    self._instance.report_run_failed(known, "its worker is gone; the run was delivered again")
                parent = known
        raise RuntimeError(f"run {run.trace_id} was taken up {_MAX_TAKES} times without an end")

    def _adopt(self, known: DagsterRun, run: Run, number: int) -> DagsterRun:
        """A record that nobody has begun to execute: the UI's, or that of a worker which died just then."""
        tags = _tags(run, number)
        if not tags.items() <= known.tags.items():
            self._instance.add_run_tags(known.run_id, tags)
        # Without a logger in its config Dagster adds its own, which tells every event in colour on stderr.
        config = {**known.run_config, **({} if known.run_config.get("loggers") else RUN_CONFIG)}
        return known._replace(run_config=config, tags={**known.tags, **tags}, status=DagsterRunStatus.NOT_STARTED)

    def _create(self, run: Run, run_id: str, number: int, parent: DagsterRun | None) -> DagsterRun:
        tags = _tags(run, number)
        if parent is not None:
            return self._record(run_id, tags, number, parent)
        if self._first is None:
            made = self._record(run_id, tags, number)
            self._first = made._replace(tags={name: value for name, value in made.tags.items() if name not in tags})
            return made
        return self._instance.add_run(self._first._replace(run_id=run_id, tags={**self._first.tags, **tags}))

    def _record(self, run_id: str, tags: dict[str, Any], number: int, parent: DagsterRun | None = None) -> DagsterRun:
        root, plan = None, None
        if parent is not None:
            root = parent.root_run_id or parent.run_id
            tags |= {PARENT_RUN_ID_TAG: parent.run_id, ROOT_RUN_ID_TAG: root}
            plan = self._rest_of(parent)
            left = sorted(plan.step_keys_to_execute) if plan else "all"
            logger.warning("run taken up again", take=number, parent=parent.run_id, steps=left)
        return self._instance.create_run_for_job(
            job_def=self._job,
            execution_plan=plan,
            run_id=run_id,
            run_config=parent.run_config if parent else RUN_CONFIG,
            tags=tags,
            parent_run_id=parent.run_id if parent else None,
            root_run_id=root,
            remote_job_origin=self._job_origin,
            job_code_origin=self._python_origin,
        )

    def _rest_of(self, parent: DagsterRun) -> ExecutionPlan | None:
        """What a child still has to do; None for everything."""
        self._instance.event_log_storage.free_concurrency_slots_for_run(parent.run_id)  # a killed worker did not
        ended = self._instance.get_run_by_id(parent.run_id)
        try:
            steps, known = KnownExecutionState.build_resume_retry_reexecution(self._instance, ended or parent)
            if not steps or not self._whole(parent, steps, known):
                return None  # what was kept of drafts and decision is used all the same
            return create_execution_plan(
                self._job, parent.run_config, step_keys_to_execute=list(steps), known_state=known, tags=parent.tags
            )
        except (DagsterError, CheckError) as error:
            # The parent may stem from another version of the job. What it kept of the drafts is used all the same.
            logger.warning("the finished steps are not known", parent=parent.run_id, error=str(error))
            return None

    def _whole(self, parent: DagsterRun, steps: Sequence[str], known: KnownExecutionState) -> bool:
        """Whether every task is either done or among the steps to do.

        A worker is killed between two events as well: of the tasks of a step, which start together, Dagster then knows
        only those whose start was written, and would leave the others out for good.
        """
        done = self._instance.all_logs(parent.run_id, of_type=DagsterEventType.STEP_SUCCESS)
        accounted = {*steps, *(log.step_key for log in done)}
        chosen = parent.step_keys_to_execute  # what is not among them was done in an earlier take
        for source, step in _MAPPED.items():
            labels = (known.dynamic_mappings.get(source) or {}).get("tasks") or ()
            if (source == "plan" and not labels) or (source in steps and labels):
                return False
            for key in (f"{step}[{label}]" for label in labels):
                # `argue[?]` stands for them all in a run that did not know its tasks yet.
                if key not in accounted and (chosen is None or key in chosen or f"{step}[?]" in chosen):
                    return False
        return True


def _tags(run: Run, number: int) -> dict[str, Any]:
    debate = run.question.debate or {}
    tags = {"trace_id": run.trace_id, "req_id": run.req_id, "project": run.project, "route": run.route}
    tags |= {"attempt": str(run.attempt), "take": str(number)}
    return tags | {name: str(debate[name]) for name in ("strategy", "rounds") if debate.get(name) is not None}
