"""Dagster's record of a run follows the log, also when the worker that should have written it is gone."""

import asyncio

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from dagster_project.jobs import debate_job
from dagster_project.sweep_job import end_orphans
from serve_app.answers import failed
from serve_app.errors import Unavailable
from serve_app.events import Usage
from serve_app.store.memory import InMemoryRunStore
from tests.integration.dagster_stand import (
    make_run,
)


@pytest.fixture
def kept(instance: DagsterInstance) -> DagsterInstance:
    return instance


async def test_a_dagster_run_that_outlived_its_worker_is_ended(kept: DagsterInstance) -> None:
    store = InMemoryRunStore()
    over, going = make_run(), make_run()
    made = {}
    for run in (over, going):
        await store.claim(run, lease_s=30)
        made[run.trace_id] = await asyncio.to_thread(
            kept.create_run_for_job, job_def=debate_job(None, None), tags={"trace_id": run.trace_id}
        )
    assert await store.settle(over, failed(Unavailable("its worker fell silent"), Usage()))

    assert await end_orphans(kept, store, quiet_s=3600) == 0  # its worker may be about to say so itself
    assert await end_orphans(kept, store, quiet_s=-1) == 1

    statuses = {
        trace_id: (await asyncio.to_thread(kept.get_run_by_id, run.run_id)).status  # type: ignore[union-attr]
        for trace_id, run in made.items()
    }
    assert statuses == {over.trace_id: DagsterRunStatus.FAILURE, going.trace_id: DagsterRunStatus.NOT_STARTED}
