"""The private API of Dagster that we stand on. A failure here names what a new version changed, and who uses it."""

import importlib
import inspect
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun
from dagster._core.execution.plan.state import KnownExecutionState

from dagster_project.warm.thrift import GROWING

EXECUTOR, STORAGE, RUNNER, INSTANCE, THRIFT = "executor.py", "storage.py", "runner.py", "instance.py", "thrift.py"
TAKES, OUTPUTS, OPS = "takes.py", "step_outputs.py", "ops.py"
LAUNCHER = "launcher.py"

# user in dagster_project, module, attribute path, parameters that we pass (None: only its presence counts)
USED: list[tuple[str, str, str, tuple[str, ...] | None]] = [
    (THRIFT, "dagster._core.definitions.scoped_resources_builder", "Resources", None),
    (THRIFT, "dagster._core.definitions.scoped_resources_builder", "ScopedResourcesBuilder.__new__", ("resource_instance_dict",)),
    (THRIFT, "dagster._core.definitions.scoped_resources_builder", "ScopedResourcesBuilder.build", ("required_resource_keys",)),
    (THRIFT, "dagster._core.definitions.scoped_resources_builder", "ScopedResourcesBuilder.contains_generator", None),
    (
        THRIFT,
        "dagster._core.execution.context.system",
        "ExecutionData.__new__",
        ("scoped_resources_builder", "resolved_run_config", "job_def", "repository_def"),
    ),
    (THRIFT, "dagster._core.execution.context.system", "PlanOrchestrationContext.run_config", None),
    (THRIFT, "dagster._core.system_config.objects", "ResolvedRunConfig.build", ("job_def", "run_config")),
    (
        THRIFT,
        "dagster._core.execution.resources_init",
        "resource_initialization_manager",
        (
            "resource_defs",
            "resource_configs",
            "log_manager",
            "execution_plan",
            "dagster_run",
            "resource_keys_to_init",
            "instance",
            "emit_persistent_events",
            "event_loop",
        ),
    ),
    (THRIFT, "dagster", "JobDefinition.get_required_resource_defs", ()),
    (EXECUTOR, "dagster._core.errors", "DagsterExecutionInterruptedError", None),
    (EXECUTOR, "dagster._core.events", "EngineEventData.interrupted", ("steps_interrupted",)),
    (EXECUTOR, "dagster", "DagsterEvent.engine_event", ("plan_context", "message", "event_specific_data")),
    (
        EXECUTOR,
        "dagster._core.execution.context.system",
        "PlanExecutionContext.__init__",
        ("plan_data", "execution_data", "log_manager", "output_capture", "event_loop"),
    ),
    (EXECUTOR, "dagster._core.execution.context.system", "PlanOrchestrationContext.plan_data", None),
    (EXECUTOR, "dagster._core.execution.context.system", "PlanOrchestrationContext.output_capture", None),
    (EXECUTOR, "dagster._core.execution.context.system", "PlanExecutionContext.for_step", ("step", "known_state")),
    (EXECUTOR, "dagster._core.execution.context.system", "StepExecutionContext.event_loop", None),
    (EXECUTOR, "dagster._core.execution.plan.execute_plan", "dagster_event_sequence_for_step", ("step_context",)),
    (EXECUTOR, "dagster._core.execution.plan.execute_plan", "_trigger_hook", ("step_context", "step_event_list")),
    (
        EXECUTOR,
        "dagster._core.execution.plan.instance_concurrency_context",
        "InstanceConcurrencyContext.__init__",
        ("instance", "dagster_run"),
    ),
    (
        EXECUTOR,
        "dagster._core.execution.plan.plan",
        "ExecutionPlan.start",
        ("retry_mode", "max_concurrent", "instance_concurrency_context"),
    ),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.get_steps_to_execute", ("limit",)),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.handle_event", ("dagster_event",)),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.verify_complete", ("job_context", "step_key")),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.plan_events_iterator", ("job_context",)),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.concurrency_event_iterator", ("plan_context",)),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.mark_interrupted", ()),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.check_for_interrupts", ()),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.sleep_interval", ()),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.get_known_state", ()),
    (EXECUTOR, "dagster._core.execution.plan.active", "ActiveExecution.is_complete", None),
    (EXECUTOR, "dagster._core.execution.retries", "RetryMode.ENABLED", None),
    (EXECUTOR, "dagster._core.executor.base", "Executor.execute", ("plan_context", "execution_plan")),
    (STORAGE, "dagster._core.events", "ASSET_EVENTS", None),
    (STORAGE, "dagster._core.events", "ASSET_CHECK_EVENTS", None),
    (STORAGE, "dagster._core.events", "EVENT_TYPE_TO_PIPELINE_RUN_STATUS", None),
    (STORAGE, "dagster._core.storage.event_log", "SqlEventLogStorageTable.insert", ()),
    (STORAGE, "dagster._core.storage.event_log.base", "PoolLimit", None),
    (STORAGE, "dagster_postgres", "DagsterPostgresStorage.__init__", ("postgres_url", "should_autocreate_tables", "inst_data")),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.__init__", ("postgres_url", "should_autocreate_tables")),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.store_event", ("event",)),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage._event_to_row", ("event",)),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.get_records_for_run", None),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.handles_run_events_in_store_event", None),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.has_asset_key_index_cols", ()),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.supports_global_concurrency_limits", None),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.get_pool_limits", ()),
    (
        STORAGE,
        "dagster_postgres.event_log",
        "PostgresEventLogStorage.set_concurrency_slots",
        ("concurrency_key", "num"),
    ),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.delete_concurrency_limit", ("concurrency_key",)),
    (STORAGE, "dagster_postgres.event_log", "PostgresEventLogStorage.dispose", ()),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.__init__", ("postgres_url", "should_autocreate_tables")),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.handle_run_event", ("run_id", "event", "update_timestamp")),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.has_run_stats_index_cols", ()),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.has_backfill_id_column", ()),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.has_job_snapshot", ("job_snapshot_id",)),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.get_job_snapshot", ("job_snapshot_id",)),
    (STORAGE, "dagster_postgres.run_storage", "PostgresRunStorage.get_execution_plan_snapshot", ("execution_plan_snapshot_id",)),
    (THRIFT, "dagster._core.definitions.job_base", "InMemoryJob.__init__", ("job_def",)),
    (
        TAKES,
        "dagster._core.definitions.reconstruct",
        "ReconstructableRepository.for_module",
        ("module", "fn_name", "working_directory"),
    ),
    (TAKES, "dagster._core.definitions.reconstruct", "ReconstructableJob.get_python_origin", ()),
    (TAKES, "dagster._core.errors", "DagsterRunAlreadyExists", None),
    (THRIFT, "dagster._core.execution.api", "execute_run_iterator", ("job", "dagster_run", "instance")),
    (
        THRIFT,
        "dagster._core.execution.api",
        "ExecuteRunWithPlanIterable.__init__",
        ("execution_plan", "iterator", "execution_context_manager"),
    ),
    (THRIFT, "dagster._core.execution.api", "job_execution_iterator", ("job_context", "execution_plan")),
    (THRIFT, "dagster._core.execution.api", "create_execution_plan", ("job", "run_config", "step_keys_to_execute")),
    (
        THRIFT,
        "dagster._core.execution.context_creation_job",
        "PlanOrchestrationContextManager.__init__",
        ("context_event_generator", "job", "execution_plan", "run_config", "dagster_run", "instance"),
    ),
    (THRIFT, "dagster._core.execution.context_creation_job", "orchestration_context_event_generator", None),
    (THRIFT, "dagster", "DagsterRun.resolved_op_selection", None),
    (RUNNER, "dagster", "DagsterRun.with_status", ("status",)),
    (TAKES, "dagster._core.remote_origin", "ManagedGrpcPythonEnvCodeLocationOrigin", None),
    (TAKES, "dagster._core.remote_origin", "RemoteRepositoryOrigin.get_job_origin", ("job_name",)),
    (TAKES, "dagster._core.storage.tags", "PARENT_RUN_ID_TAG", None),
    (TAKES, "dagster._core.storage.tags", "ROOT_RUN_ID_TAG", None),
    (TAKES, "dagster._core.types.loadable_target_origin", "LoadableTargetOrigin", None),
    (
        TAKES,
        "dagster",
        "DagsterInstance.create_run_for_job",
        (
            "job_def",
            "execution_plan",
            "run_id",
            "run_config",
            "tags",
            "parent_run_id",
            "root_run_id",
            "remote_job_origin",
            "job_code_origin",
        ),
    ),
    (
        TAKES,
        "dagster._core.execution.api",
        "create_execution_plan",
        ("job", "run_config", "step_keys_to_execute", "known_state", "tags"),
    ),
    (
        TAKES,
        "dagster._core.execution.plan.state",
        "KnownExecutionState.build_resume_retry_reexecution",
        ("instance", "parent_run"),
    ),
    (TAKES, "dagster", "DagsterInstance.add_run", ("dagster_run",)),
    (TAKES, "dagster", "DagsterInstance.report_run_failed", ("dagster_run", "message")),
    (TAKES, "dagster", "DagsterInstance.add_run_tags", ("run_id", "new_tags")),
    (TAKES, "dagster_postgres.event_log", "PostgresEventLogStorage.free_concurrency_slots_for_run", ("run_id",)),
    (TAKES, "dagster", "DagsterRun._replace", None),
    (OUTPUTS, "dagster", "InputContext.step_context", None),
    (OUTPUTS, "dagster", "InputContext.upstream_output", None),
    (OPS, "dagster", "OpExecutionContext.get_step_execution_context", ()),
    (OPS, "dagster", "OpExecutionContext.retry_number", None),
    (RUNNER, "dagster", "DagsterInstance.report_engine_event", ("message", "dagster_run", "cls")),
    (RUNNER, "dagster", "DagsterInstance.add_run_tags", ("run_id", "new_tags")),
    (RUNNER, "dagster", "DagsterInstance.report_run_canceling", ("run", "message")),
    (RUNNER, "dagster", "DagsterInstance.report_run_canceled", ("dagster_run", "message")),
    (LAUNCHER, "dagster._core.errors", "DagsterLaunchFailedError", None),
    (LAUNCHER, "dagster._core.launcher.base", "LaunchRunContext.dagster_run", None),
    (LAUNCHER, "dagster._core.launcher.default_run_launcher", "DefaultRunLauncher.launch_run", ("context",)),
    (LAUNCHER, "dagster._core.launcher.default_run_launcher", "DefaultRunLauncher.terminate", ("run_id",)),
    (LAUNCHER, "dagster", "DagsterInstance.report_engine_event", ("message", "dagster_run", "cls")),
    (LAUNCHER, "dagster", "DagsterInstance.root_directory", None),
    (INSTANCE, "dagster._core.instance.ref", "InstanceRef.from_dir", ("base_dir", "overrides")),
    (INSTANCE, "dagster", "DagsterInstance.get_yaml_python_handlers", ()),
    (INSTANCE, "dagster._core.storage.noop_compute_log_manager", "NoOpComputeLogManager", None),
]


@pytest.mark.parametrize(("user", "module", "path", "parameters"), USED, ids=[f"{m}.{p}" for _, m, p, _ in USED])
def test_what_we_use_is_there(user: str, module: str, path: str, parameters: tuple[str, ...] | None) -> None:
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        assert hasattr(found, name), f"dagster has no {module}.{path} any more; dagster_project/{user} uses it"
        found = getattr(found, name)
    if parameters is None:
        return
    has = inspect.signature(found).parameters
    missing = [p for p in parameters if p not in has]
    assert not missing, f"{module}.{path} takes no {missing} any more (it takes {list(has)}); dagster_project/{user} passes it"


def test_a_step_has_the_loop_and_the_resources_that_the_executor_gave_its_run() -> None:
    from dagster._core.execution.context.system import PlanExecutionContext, TypeCheckContext

    given = inspect.getsource(PlanExecutionContext.for_step)
    assert "event_loop=self.event_loop" in given, "executor.py gives a run its loop, and Dagster no longer hands it to steps"
    for reader in (PlanExecutionContext.for_step, PlanExecutionContext.for_type):
        told = "executor.py gives a run its resources, and Dagster no longer hands them to steps"
        assert "self._execution_data" in inspect.getsource(reader), told
    assert "scoped_resources_builder.build(" in inspect.getsource(TypeCheckContext.__init__)


def test_what_grows_in_a_plan_is_what_each_run_gets_its_own_of() -> None:
    """And a run is started from its plan as thrift.JobRuns does it."""
    from dagster._core.execution.api import execute_run_iterator
    from dagster._core.execution.plan.plan import ExecutionPlan

    plan = ExecutionPlan({}, {}, {}, [], KnownExecutionState())
    assert {name for name, value in plan._asdict().items() if isinstance(value, dict)} == set(GROWING)
    source = inspect.getsource(execute_run_iterator)
    for expected in ("iterator=job_execution_iterator", "context_event_generator=orchestration_context_event_generator"):
        assert expected in source, f"execute_run_iterator no longer has {expected}; thrift.py does as it did"


def test_a_step_body_is_asked_for_its_signature_where_it_may_be_kept() -> None:
    from dagster._core.decorator_utils import get_function_params

    assert "signature(fn)" in inspect.getsource(get_function_params), "thrift.signed keeps what is no longer asked for"


def test_dagster_leaves_the_status_of_runs_to_the_storage() -> None:
    """And nothing else that our instance needs: what comes after it is for automatic retries of runs, which are off."""
    source = inspect.getsource(DagsterInstance.handle_new_event)
    assert "not self._event_storage_impl.handles_run_events_in_store_event" in source
    assert source.count("handle_run_event(") == 1
    assert "run_retries_enabled" in source
    with DagsterInstance.ephemeral() as instance:
        assert not instance.run_retries_enabled


def test_async_ops_use_nothing_of_the_loop_but_run_until_complete() -> None:
    from dagster._core.execution.plan import compute

    lines = inspect.getsource(compute).splitlines()
    used = {line.partition("event_loop.")[2].partition("(")[0] for line in lines if "event_loop." in line}
    assert used == {"run_until_complete"}, f"executor.py offers run_until_complete only; Dagster now calls {used}"


def test_silencing_the_yaml_handlers_is_enough_against_the_logging_deadlock() -> None:
    """dictConfig() closes every handler of the process, and two runs that do it at once hang."""
    with DagsterInstance.ephemeral() as instance:
        instance.get_yaml_python_handlers = lambda: []  # type: ignore[method-assign]
        assert len(instance.get_handlers()) == 1, "a run would set up more than Dagster's own event handler"


def test_the_stores_of_the_instance_are_ours() -> None:
    run_storage = inspect.getattr_static(DagsterInstance, "run_storage")
    assert isinstance(run_storage, property), "runner.py takes its lock through run_storage"
    assert "root_run_id" in inspect.signature(DagsterRun.__new__).parameters, "takes.py reads root_run_id of a run"
