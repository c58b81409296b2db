"""What Dagster does anew for every run or step, and a warm worker does once.

This stands on private API of dagster 1.13: tests/contracts/test_dagster_private_api.py guards each name used.
"""

import inspect
from collections.abc import Callable, Iterator, Set
from typing import Any, Final, TypeVar

from dagster import DagsterEvent, DagsterInstance, DagsterRun, DagsterRunStatus, JobDefinition
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.scoped_resources_builder import Resources, ScopedResourcesBuilder
from dagster._core.execution.api import (
    ExecuteRunWithPlanIterable,
    create_execution_plan,
    execute_run_iterator,
    job_execution_iterator,
)
from dagster._core.execution.context.system import ExecutionData, PlanOrchestrationContext
from dagster._core.execution.context_creation_job import PlanOrchestrationContextManager, orchestration_context_event_generator
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.resources_init import resource_initialization_manager
from dagster._core.system_config.objects import ResolvedRunConfig

Body = TypeVar("Body", bound=Callable[..., Any])
GROWING: Final = ("step_dict", "executable_map", "resolvable_map", "step_dict_by_key")  # what changes in a plan that is executed


def signed(body: Body) -> Body:
    """Below `@op`: the signature of a step's body is kept with it. Dagster asks for it three times at each step."""
    body.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]
    return body


class JobRuns:
    """Executes runs of one job as Dagster's execute_run_iterator does; those that do the same steps share a plan."""

    def __init__(self, job: JobDefinition, instance: DagsterInstance) -> None:
        self._job = InMemoryJob(job)
        self._instance = instance
        self._known: tuple[Any, ExecutionPlan] | None = None  # for which configuration and steps

    def events(self, run: DagsterRun) -> Iterator[DagsterEvent]:
        """The events of the run while it is executed."""
        if run.status is not DagsterRunStatus.NOT_STARTED or run.parent_run_id or _is_subset(run):
            return execute_run_iterator(self._job, run, self._instance)
        plan = self._plan(run)
        context = PlanOrchestrationContextManager(
            context_event_generator=orchestration_context_event_generator,
            job=self._job,
            execution_plan=plan,
            run_config=run.run_config,
            dagster_run=run,
            instance=self._instance,
        )
        return iter(ExecuteRunWithPlanIterable(plan, job_execution_iterator, context))

    def _plan(self, run: DagsterRun) -> ExecutionPlan:
        wanted = (run.run_config, run.step_keys_to_execute)
        known = self._known
        if known is None or known[0] != wanted:
            known = self._known = (wanted, create_execution_plan(self._job, *wanted))
        own: dict[str, Any] = {name: dict(getattr(known[1], name)) for name in GROWING}
        return known[1]._replace(**own)  # a run enters the steps that it maps in its plan


def _is_subset(run: DagsterRun) -> bool:
    """Whether the run is of a job that has only a part of the steps."""
    return bool(run.resolved_op_selection or run.asset_selection or run.asset_check_selection)


class SharedData:
    """What the runs of one job with one configuration have in common, made for the first of them."""

    def __init__(self) -> None:
        self._known: tuple[Any, ExecutionData] | None = None  # for which job and configuration

    def of(self, run: PlanOrchestrationContext) -> ExecutionData:
        """The resolved configuration and the opened resources. Raises what Dagster raises for a wrong configuration."""
        wanted = (run.job.get_definition(), run.run_config)
        known = self._known
        if known is None or known[0] != wanted:
            known = self._known = (wanted, _execution_data(run))
        return known[1]


def _execution_data(run: PlanOrchestrationContext) -> ExecutionData:
    job = run.job.get_definition()
    config = ResolvedRunConfig.build(job, run.run_config)
    resources = job.get_required_resource_defs()
    opening = resource_initialization_manager(
        resource_defs=resources,
        resource_configs=config.resources,
        log_manager=run.log,
        execution_plan=None,
        dagster_run=None,
        resource_keys_to_init=set(resources),
        instance=run.instance,
        emit_persistent_events=False,  # they are opened for the worker, not for this run
        event_loop=None,
    )
    for _event in opening.generate_setup_events():
        pass
    opened = opening.get_object()
    if opened.contains_generator:
        raise TypeError(f"a resource of job {job.name} ends with its run: a warm worker keeps resources, so none may yield")
    return ExecutionData(_BuiltOnce.over(opened), config, job, run.job.get_repository_definition())


class _BuiltOnce(ScopedResourcesBuilder):
    """Dagster makes a class anew for each step, input, output and type check; the resources of a worker do not change."""

    _built: dict[frozenset[str], Resources]

    def build(self, required_resource_keys: Set[str] | None) -> Resources:
        keys = frozenset(required_resource_keys or ())
        found = self._built.get(keys)
        if found is None:
            found = self._built[keys] = super().build(keys)
        return found

    @classmethod
    def over(cls, stock: ScopedResourcesBuilder) -> "_BuiltOnce":
        made = cls(stock.resource_instance_dict)
        made._built = {}
        return made
