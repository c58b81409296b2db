"""A cancel that nobody heard on NATS is found in the log: by the worker that takes the run up, or that executes it."""

import asyncio

from dagster import DagsterInstance, DagsterRunStatus

from dagster_project.jobs import debate_job
from dagster_project.sweep_job import end_dagster_run
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from tests.integration.dagster_stand import (
    WAIT_S,
    Script,
    ScriptedReplicas,
    Stand,
    bodies,
    make_run,
)


async def test_a_run_that_was_cancelled_while_it_waited_is_not_executed(
    settings: Settings,
    instance: DagsterInstance,
) -> None:
    stand = Stand(settings, instance, ScriptedReplicas())
    run = await stand.submit()
    await stand.store.request_cancel(run.trace_id, "nobody wants it")
    async with stand.working() as pulls:
        (end,) = bodies(await stand.events(run))
        await stand.until_quiet(pulls)
    assert isinstance(end, FinishedEvent)
    assert end.reason == "cancelled"
    assert end.error is not None
    assert end.error["message"] == "the run was cancelled: nobody wants it"
    assert stand.replicas.calls == []
    record = await stand.store.find(run.trace_id)
    assert record is not None
    assert record.status is RunStatus.CANCELLED
    assert (await stand.dagster_run(run)).status is DagsterRunStatus.CANCELED


async def test_a_running_debate_stops_when_the_log_says_so(
    settings: Settings,
    instance: DagsterInstance,
) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(**{label: Script(("one ",), hangs=True) for label in "ABC"}))
    stand.settings = settings.model_copy(update={"lease_s": 0.9})
    async with stand.working() as pulls:
        run = await stand.submit()
        async with asyncio.timeout(WAIT_S), stand.bus.subscribe(run.trace_id) as events:
            async for event in events:
                if isinstance(event.body, TokenEvent):
                    await stand.store.request_cancel(run.trace_id, "enough")
                end = event.body
        await stand.until_quiet(pulls)
    assert isinstance(end, FinishedEvent)
    assert end.reason == "cancelled"
    assert stand.replicas.open == 0
    record = await stand.store.find(run.trace_id)
    assert record is not None
    assert record.status is RunStatus.CANCELLED
    assert (await stand.dagster_run(run)).status is DagsterRunStatus.CANCELED


async def test_dagster_shows_a_cancelled_run_whose_worker_died_as_canceled(
    settings: Settings,
    instance: DagsterInstance,
) -> None:
    stand = Stand(settings, instance, ScriptedReplicas())
    run = make_run()
    made = await asyncio.to_thread(instance.create_run_for_job, job_def=debate_job(None, None), tags={"trace_id": run.trace_id})
    await stand.store.claim(run, lease_s=-1)
    await stand.store.note_dagster_run(run.trace_id, made.run_id)
    await stand.store.request_cancel(run.trace_id, "enough")
    (record,) = await stand.store.end_abandoned(limit=1)
    await end_dagster_run(instance, record)
    found = await asyncio.to_thread(instance.get_run_by_id, made.run_id)
    assert found is not None
    assert found.status is DagsterRunStatus.CANCELED
