"""How a debate ends other than well: cancels, deadlines, owners that lose it, ends that are told late."""

import asyncio
import time
from contextlib import aclosing

import pytest
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from dagster_project.running.conductor import Conductor
from dagster_project.running.ends import give_up
from dagster_project.running.pull_loop import PullLoop
from serve_app.bus.memory import InMemoryEventBus, InMemoryRunQueue
from serve_app.errors import Cancelled, Unavailable
from serve_app.events import FinishedEvent, RoleEvent, TokenEvent, Usage
from serve_app.runs import Outcome, Run, RunStatus
from serve_app.settings import Settings
from serve_app.store.memory import InMemoryRunStore
from tests.integration.dagster_stand import WAIT_S, Script, ScriptedReplicas, Stand, bodies, make_run


async def test_a_cancel_stops_the_replicas_and_the_dagster_run(settings: Settings, instance: DagsterInstance) -> None:
    hanging = {label: Script(("one ", "two "), hangs=True) for label in "ABC"}
    stand = Stand(settings, instance, ScriptedReplicas(**hanging))
    async with stand.working() as pulls:
        run = await stand.submit()
        async with asyncio.timeout(WAIT_S), stand.bus.subscribe(run.trace_id) as events:
            seen = 0
            async for event in events:
                if isinstance(event.body, TokenEvent):
                    seen += 1
                    if seen == 6:
                        cancelled_at = time.perf_counter()
                        await stand.bus.publish_cancel(run.trace_id, "client left")
                end = event.body
        took = time.perf_counter() - cancelled_at
        await stand.until_quiet(pulls)
    assert isinstance(end, FinishedEvent)
    assert end.reason == "cancelled"
    assert stand.replicas.open == 0, "the engine still works for nobody"
    assert took < 30  # the debaters would hang until the deadline, a minute
    record = await stand.store.find(run.trace_id)
    assert record is not None
    assert record.status is RunStatus.CANCELLED
    assert record.usage is not None
    assert record.usage["completion_tokens"] == 6, "what was used until the cancel is recorded"
    ended = await stand.dagster_run(run)
    assert ended.status is DagsterRunStatus.CANCELED
    assert ended.tags["ended_by"] == "cancelled"
    said = await asyncio.to_thread(instance.all_logs, ended.run_id)
    assert any("client left" in log.message for log in said if log.dagster_event is not None), "the UI says why"


async def test_a_cancel_that_comes_before_the_run_is_kept(settings: Settings, instance: DagsterInstance) -> None:
    stand = Stand(settings, instance, ScriptedReplicas())
    async with stand.working():
        run = make_run()
        await stand.store.claim(run, lease_s=30)
        await stand.bus.publish_cancel(run.trace_id, "gone")
        await stand.queue.submit(run)
        end = bodies(await stand.events(run))[-1]
    assert isinstance(end, FinishedEvent)
    assert end.reason == "cancelled"


async def test_the_deadline_ends_a_debate(settings: Settings, instance: DagsterInstance) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(**{label: Script(hangs=True, wait_s=60) for label in "ABC"}))
    async with stand.working():
        run = await stand.submit(timeout_s=2)
        end = bodies(await stand.events(run))[-1]
    assert isinstance(end, FinishedEvent)
    assert end.error is not None
    assert end.error["code"] == "deadline_exceeded"
    assert stand.replicas.open == 0


async def test_a_run_delivered_again_after_its_end_is_left_alone(settings: Settings, instance: DagsterInstance) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(judge=Script(("A",))))
    async with stand.working() as pulls:
        run = await stand.submit()
        await stand.events(run)
        await stand.until_quiet(pulls)
        calls = len(stand.replicas.calls)
        await stand.queue.submit(run)
        await stand.until_quiet(pulls)
    assert len(stand.replicas.calls) == calls
    found = await asyncio.to_thread(instance.get_runs, RunsFilter(tags={"trace_id": run.trace_id}))
    assert len(found) == 1


async def test_the_end_is_told_when_a_worker_died_between_the_record_and_finished(
    settings: Settings, instance: DagsterInstance
) -> None:
    stand = Stand(settings, instance, ScriptedReplicas())
    stand.settings = settings.model_copy(update={"queue_ack_wait_s": 0.1})
    run = await stand.submit()
    error = {"message": "it broke", "code": "upstream_failed"}
    await (await stand.bus.open_run(run.trace_id)).emit(RoleEvent())  # all that the worker said
    await stand.store.settle(run, Outcome(RunStatus.FAILED, "error", Usage(), error=error))
    async with aclosing(stand.queue.deliveries(limit=1)) as deliveries:
        await anext(deliveries)  # the worker that died
    async with stand.working() as pulls:
        *_, end = bodies(await stand.events(run))
        await stand.until_quiet(pulls)
    assert isinstance(end, FinishedEvent)
    assert end.error == error
    assert stand.replicas.calls == []


async def test_a_run_that_was_ended_meanwhile_is_stopped_and_says_nothing_more(
    settings: Settings, instance: DagsterInstance
) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(**{label: Script(hangs=True) for label in "ABC"}))
    stand.settings = settings.model_copy(update={"lease_s": 0.6})
    async with stand.working() as pulls:
        run = await stand.submit()
        async with asyncio.timeout(WAIT_S), stand.bus.subscribe(run.trace_id) as events:
            with pytest.raises(Unavailable, match="goes on in another process"):  # noqa: PT012 - it says so while we read
                async for event in events:
                    if isinstance(event.body, TokenEvent) and event.body.task is not None:
                        await stand.store.extend_leases([run.trace_id], lease_s=-1)
                        await stand.store.end_abandoned(limit=1)
        await stand.until_quiet(pulls)
    assert stand.replicas.open == 0, "the engine still works for a run that has ended"
    record = await stand.store.find(run.trace_id)
    assert record is not None
    assert (record.status, record.attempt) == (RunStatus.FAILED, 2)
    assert (await stand.dagster_run(run)).status is DagsterRunStatus.FAILURE


async def test_a_healthy_run_survives_its_last_delivery_to_another_worker(settings: Settings, instance: DagsterInstance) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(A=Script(hangs=True), judge=Script(("A",))))
    stand.queue = InMemoryRunQueue(ack_wait_s=0.5, max_deliver=1)
    async with stand.working() as healthy:
        run = await stand.submit()
        async with asyncio.timeout(WAIT_S), stand.bus.subscribe(run.trace_id) as events:
            async for event in events:
                if isinstance(event.body, TokenEvent):
                    break
        first, stand.queue = stand.queue, InMemoryRunQueue(ack_wait_s=0.1, max_deliver=2)
        await stand.queue.submit(run)
        async with aclosing(stand.queue.deliveries(limit=1)) as deliveries:
            await anext(deliveries)
        async with stand.working() as other:
            await stand.until_quiet(other)
        record = await stand.store.find(run.trace_id)
        assert record is not None
        assert record.status is RunStatus.RUNNING, "a worker gave up a run that another one executes"
        stand.queue = first
        await stand.bus.publish_cancel(run.trace_id, "enough")
        await stand.until_quiet(healthy)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_that_is_given_up_ends_as_cancelled_if_it_was(cancelled: bool) -> None:
    store, bus, run = InMemoryRunStore(), InMemoryEventBus(), make_run()
    assert (await store.claim(run, lease_s=30)).claimed
    if cancelled:
        await store.request_cancel(run.trace_id, "client left")
    await give_up(store, bus, run, tries=4)
    record = await store.find(run.trace_id)
    assert record is not None
    assert record.error is not None
    ended = RunStatus.CANCELLED if cancelled else RunStatus.FAILED
    assert (record.status, "client left" in record.error["message"]) == (ended, cancelled)
    async with asyncio.timeout(WAIT_S), bus.subscribe(run.trace_id) as events:
        (told,) = bodies([event async for event in events])
    assert isinstance(told, FinishedEvent)
    assert told.reason == ("cancelled" if cancelled else "error")


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_cancel_during_the_commit_does_not_tear_it_apart(
    settings: Settings, instance: DagsterInstance, stopped: bool
) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(judge=Script(("A",))))
    committing, go_on = asyncio.Event(), asyncio.Event()
    record_it = stand.store.settle

    async def slow(run: Run, outcome: Outcome) -> bool:
        committing.set()
        await go_on.wait()
        return await record_it(run, outcome)

    stand.store.settle = slow  # type: ignore[method-assign]
    async with stand.working() as pulls:
        run = await stand.submit()
        async with asyncio.timeout(WAIT_S):
            await committing.wait()
        if stopped:  # it was decided on a moment before the commit, and gets here now
            await stop(stand, pulls, run)
        await stand.bus.publish_cancel(run.trace_id, "too late")
        go_on.set()
        end = bodies(await stand.events(run))[-1]
        await stand.until_quiet(pulls)
    assert isinstance(end, FinishedEvent)
    assert end.reason == "stop"
    ended = await stand.dagster_run(run)
    assert ended.status is (DagsterRunStatus.CANCELED if stopped else DagsterRunStatus.SUCCESS)
    assert "ended_by" not in ended.tags
    said = await asyncio.to_thread(instance.all_logs, ended.run_id)
    assert not [log for log in said if "No answer" in log.message], "there is one"


async def stop(stand: Stand, pulls: PullLoop, run: Run) -> None:
    """Stop what a worker executes, and wait until Dagster has it as CANCELED."""
    assert isinstance(pulls._hands, Conductor)
    execution = pulls._hands._active[run.trace_id]
    assert execution is not None
    execution.debate.stopped_by = Cancelled.because("too late")
    await asyncio.to_thread(execution.cancel)
    async with asyncio.timeout(WAIT_S):
        while (await stand.dagster_run(run)).status is not DagsterRunStatus.CANCELED:
            await asyncio.sleep(0.02)
