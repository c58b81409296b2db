"""Dagster's record of a run follows the log, also when the worker that should have written it is gone."""

import asyncio
import time
from dataclasses import replace

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus

from dagster_project.jobs import debate_job
from dagster_project.sweep_job import end_dagster_run, end_orphans
from serve_app.answers import cancelled, failed, succeeded
from serve_app.errors import Cancelled, Unavailable
from serve_app.events import ChoiceEnd, Usage
from serve_app.runs import Answer, Outcome, Run
from serve_app.store.memory import InMemoryRunStore
from tests.integration.dagster_stand import make_run

FAILED = failed(Unavailable("its worker fell silent"), Usage())
CANCELLED = cancelled(Cancelled.because("client left"), Usage())
SUCCEEDED = succeeded(Answer("small", ({"role": "assistant", "content": "Paris"},), (ChoiceEnd(finish_reason="stop"),), Usage()))
ENDS = [
    pytest.param(FAILED, DagsterRunStatus.FAILURE, "the log says that it failed", id="failed"),
    pytest.param(CANCELLED, DagsterRunStatus.CANCELED, "the log says that it was cancelled", id="cancelled"),
    pytest.param(SUCCEEDED, DagsterRunStatus.FAILURE, "the log has the answer", id="succeeded"),
]


async def left_behind(instance: DagsterInstance, store: InMemoryRunStore, run: Run) -> str:
    """A run that was begun, and whose worker is gone; the id of its Dagster run."""
    await store.claim(run, lease_s=30)
    made = await asyncio.to_thread(
        instance.create_run_for_job,
        job_def=debate_job(),
        tags={"trace_id": run.trace_id},
        status=DagsterRunStatus.STARTED,
    )
    await store.note_dagster_run(run.trace_id, made.run_id)
    return made.run_id


async def found(instance: DagsterInstance, run_id: str) -> DagsterRun:
    run = await asyncio.to_thread(instance.get_run_by_id, run_id)
    assert run is not None
    return run


async def said_of_its_end(instance: DagsterInstance, run_id: str) -> str:
    logs = await asyncio.to_thread(instance.all_logs, run_id)
    ends = (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED)
    (message,) = (log.message for log in logs if log.dagster_event_type in ends)
    return message


@pytest.mark.parametrize(("outcome", "status", "said"), ENDS)
async def test_a_dagster_run_that_outlived_its_worker_ends_as_the_log_says(
    instance: DagsterInstance, outcome: Outcome, status: DagsterRunStatus, said: str
) -> None:
    store = InMemoryRunStore()
    over, going = make_run(), make_run()
    ids = {run.trace_id: await left_behind(instance, store, run) for run in (over, going)}
    assert await store.settle(over, outcome)

    assert await end_orphans(instance, store, quiet_s=3600) == 0  # its worker may be about to say so itself
    assert await end_orphans(instance, store, quiet_s=-1) == 1

    assert (await found(instance, ids[over.trace_id])).status is status
    assert said in await said_of_its_end(instance, ids[over.trace_id])
    assert (await found(instance, ids[going.trace_id])).status is DagsterRunStatus.STARTED


@pytest.mark.parametrize(("outcome", "status", "said"), ENDS)
async def test_the_sweeper_tells_dagster_the_same(
    instance: DagsterInstance, outcome: Outcome, status: DagsterRunStatus, said: str
) -> None:
    store = InMemoryRunStore()
    run = make_run()
    run_id = await left_behind(instance, store, run)
    assert await store.settle(run, outcome)
    record = await store.find(run.trace_id)
    assert record is not None
    await end_dagster_run(instance, record)
    assert (await found(instance, run_id)).status is status
    assert said in await said_of_its_end(instance, run_id)
    await end_dagster_run(instance, replace(record, updated_at=time.time()))
    assert said in await said_of_its_end(instance, run_id), "an end is said once"
