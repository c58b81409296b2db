"""What a warm worker makes once and uses for every run is what Dagster would have made for each."""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DynamicOut,
    DynamicOutput,
    Field,
    InitResourceContext,
    OpExecutionContext,
    ResourceDefinition,
    graph,
    job,
    op,
    resource,
)
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.scoped_resources_builder import ScopedResourcesBuilder
from dagster._core.execution.api import create_execution_plan, execute_run_iterator

from dagster_project.jobs import debate_job
from dagster_project.running.takes import Takes, dagster_run_id
from dagster_project.warm import executor
from dagster_project.warm.executor import StepHost, StopSwitch, threaded
from dagster_project.warm.storage import GroupCommitEventLog, PooledRunStorage
from dagster_project.warm.thrift import JobRuns, signed
from serve_app.runs import Run
from tests.integration.dagster_stand import make_run


@op
def fail() -> None:
    raise ValueError("on purpose")


@job
def failing() -> None:
    fail()


@pytest.fixture
def host() -> Iterator[StepHost]:
    loop = asyncio.new_event_loop()
    made = StepHost(loop, steps=1, steps_per_run=1)
    yield made
    made.close()
    loop.close()


def comparable(record: DagsterRun, run: Run) -> dict[str, Any]:
    own = {"trace_id", "req_id"}
    assert record.run_id == dagster_run_id(run.trace_id, run.attempt)
    assert record.tags["trace_id"] == run.trace_id
    tags = {name: value for name, value in record.tags.items() if name not in own}
    return dict(record._replace(run_id="", tags=tags)._asdict())


def test_the_record_of_a_second_debate_is_as_dagster_would_make_it(instance: DagsterInstance) -> None:
    judged, voted, again = make_run(), make_run(strategy="vote", rounds=2), make_run(strategy="vote", rounds=2)
    takes = Takes(instance, debate_job())
    takes.begin(judged, taken_up=False)
    second = takes.begin(voted, taken_up=False).run
    fresh = Takes(instance, debate_job()).begin(again, taken_up=False).run
    assert comparable(second, voted) == comparable(fresh, again)
    stored = instance.get_run_by_id(second.run_id)
    assert stored is not None
    assert stored.tags == second.tags
    assert stored.execution_plan_snapshot_id == fresh.execution_plan_snapshot_id


OPENED: list[int] = []


@resource(config_schema={"size": Field(int, default_value=1)})
def sized(context: InitResourceContext) -> int:
    OPENED.append(context.resource_config["size"])
    return OPENED[-1]


@op(required_resource_keys={"sized"})
@signed
def measure(context: OpExecutionContext) -> int:
    return int(context.resources.sized)


@graph
def measured() -> None:
    measure()


def measured_by(host: StepHost, resource: ResourceDefinition) -> Callable[..., list[DagsterEvent]]:
    """Runs the job once, with a configuration; returns its events."""
    made = measured.to_job(resource_defs={"sized": resource, "unused": resource}, executor_def=threaded(host))

    def run(**run_config: Any) -> list[DagsterEvent]:
        with DagsterInstance.ephemeral() as nowhere:
            record = nowhere.create_run_for_job(job_def=made, run_config=run_config)
            return list(execute_run_iterator(InMemoryJob(made), record, nowhere))

    return run


def test_resources_are_opened_once_for_all_runs_that_have_the_same(host: StepHost) -> None:
    run, ten = measured_by(host, sized), {"resources": {"sized": {"config": {"size": 10}}}}
    OPENED.clear()
    for config in ({}, {}, ten, ten):
        kinds = [event.event_type for event in run(**config)]
        assert kinds[-1] is DagsterEventType.RUN_SUCCESS
        assert DagsterEventType.RESOURCE_INIT_STARTED not in kinds, "they were opened for the worker, not for this run"
    assert OPENED == [1, 10]
    assert host.shared._known is not None
    shared, stock = host.shared._known[1].scoped_resources_builder, ScopedResourcesBuilder({"sized": 10})
    assert shared.build({"sized"}) is shared.build({"sized"})
    assert shared.build({"sized"}) == stock.build({"sized"})
    assert shared.build(None) == stock.build(None)
    assert set(vars(type(shared.build({"sized"})))) >= {"original_resource_dict"}


def test_runs_that_share_a_plan_each_enter_their_own_steps(host: StepHost) -> None:
    @op(out=DynamicOut(str), config_schema={"labels": str})
    def open_tasks(context: OpExecutionContext) -> Iterator[DynamicOutput[str]]:
        yield from (DynamicOutput(label, mapping_key=label) for label in context.op_config["labels"])

    @op
    def answer(label: str) -> str:
        return label

    @graph
    def mapped() -> None:
        open_tasks().map(answer)

    labels = {"ops": {"open_tasks": {"config": {"labels": "AB"}}}}
    made = mapped.to_job(executor_def=threaded(host), config=labels)
    with DagsterInstance.ephemeral() as nowhere:
        runs = JobRuns(made, nowhere)

        def steps(**chosen: Any) -> list[str]:
            record = nowhere.create_run_for_job(job_def=made, run_config=labels, **chosen)
            events = list(runs.events(record))
            assert events[-1].event_type is DagsterEventType.RUN_SUCCESS
            return sorted(e.step_key or "" for e in events if e.event_type is DagsterEventType.STEP_SUCCESS)

        whole = ["answer[A]", "answer[B]", "open_tasks"]
        assert steps() == whole
        assert runs._known is not None
        shared = runs._known[1]
        assert steps() == whole
        assert runs._known[1] is shared
        fresh = create_execution_plan(made, labels, step_keys_to_execute=["open_tasks", "answer[?]"])
        assert shared == fresh, "a run changed the plan that all share"
        only_first = create_execution_plan(made, labels, step_keys_to_execute=["open_tasks"])
        assert steps(execution_plan=only_first) == ["open_tasks"]


def test_a_resource_that_ends_with_its_run_is_refused(host: StepHost) -> None:
    @resource
    def lent(_context: InitResourceContext) -> Iterator[int]:
        yield 1

    ended = measured_by(host, lent)()[-1]
    assert ended.event_type is DagsterEventType.RUN_FAILURE
    assert "none may yield" in str(ended.event_specific_data)


def test_the_signature_that_is_kept_is_that_of_the_step() -> None:
    def body(context: OpExecutionContext, label: str, more: int = 2) -> str:
        return label * more

    told = inspect.signature(body)
    assert signed(body) is body
    assert inspect.signature(body) == told


def test_the_status_of_a_run_follows_its_events(instance: DagsterInstance) -> None:
    began = time.time()
    run = failing.execute_in_process(instance=instance, raise_on_error=False)
    record = instance.get_run_record_by_id(run.run_id)
    assert record is not None
    assert record.dagster_run.status is DagsterRunStatus.FAILURE
    assert record.start_time is not None
    assert record.end_time is not None
    assert began <= record.start_time <= record.end_time
    kinds = [log.dagster_event_type for log in instance.all_logs(run.run_id) if log.is_dagster_event]
    assert kinds[0] is DagsterEventType.RUN_START
    assert kinds[-1] is DagsterEventType.RUN_FAILURE


def test_events_reach_postgres_when_nobody_waits_for_them(instance: DagsterInstance) -> None:
    """A reader elsewhere does not flush this worker's log."""
    log = instance.event_log_storage
    assert isinstance(log, GroupCommitEventLog)
    run = instance.create_run_for_job(job_def=failing)
    instance.report_engine_event("one line", run)
    give_up = time.monotonic() + 30
    count = sqlalchemy.text("SELECT count(*) FROM event_logs WHERE run_id = :run")
    while time.monotonic() < give_up:
        with log._engine.connect() as connection:
            if connection.execute(count, {"run": run.run_id}).scalar() == 1:
                return
    raise AssertionError("the event was never written")


def test_a_connection_that_its_server_closed_is_noticed_without_a_question(instance: DagsterInstance) -> None:
    runs = instance.run_storage
    assert isinstance(runs, PooledRunStorage)
    backend = sqlalchemy.text("SELECT pg_backend_pid()")
    with runs.engine.connect() as connection:
        used = connection.execute(backend).scalar()
        with runs.engine.connect() as other:
            assert other.execute(backend).scalar() != used
    with runs.engine.connect() as connection:
        kept = connection.execute(backend).scalar()
        with runs.engine.connect() as other:
            other.execute(sqlalchemy.text("SELECT pg_terminate_backend(:pid, 30000)"), {"pid": kept})
    with runs.engine.connect() as connection:
        now = connection.execute(backend).scalar()
        assert now != kept


async def test_a_step_waits_as_long_as_it_takes_and_hears_every_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_POLL_S", 0.001)
    switch = StopSwitch(asyncio.get_running_loop())

    async def answer(fault: Exception | None = None) -> str:
        await asyncio.sleep(0.05)
        if fault is not None:
            raise fault
        return "done"

    assert await asyncio.to_thread(switch.run, answer()) == "done"
    with pytest.raises(TimeoutError, match="its own"):
        await asyncio.to_thread(switch.run, answer(TimeoutError("its own")))
