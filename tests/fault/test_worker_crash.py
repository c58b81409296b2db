"""A worker that dies or freezes in the middle of a debate: the run still has one end."""

import asyncio
import time

from dagster import DagsterEventType, DagsterRunStatus
from nats.aio.msg import Msg

from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.step_outputs import StepOutputs
from serve_app.bus.streams import event_subject
from serve_app.events import FinishedEvent, ProgressEvent, RoleEvent, RunEvent, TokenEvent, decode
from serve_app.ports import RunRecord
from serve_app.runs import Run, RunStatus
from tests.fault.conftest import WAIT_S, Field, pause, resume
from tests.fault.worker_process import CALLS, DEPLOYED
from tests.integration.dagster_stand import make_run


def is_token(event: RunEvent) -> bool:
    return isinstance(event.body, TokenEvent)


def two_are_done(event: RunEvent) -> bool:
    return isinstance(event.body, ProgressEvent) and event.body.done == 2


async def tapped(field: Field, run: Run) -> list[RunEvent]:
    """Everything that is published of the run from now on, whoever publishes it."""
    told: list[RunEvent] = []

    async def hear(message: Msg) -> None:
        told.append(decode(message.data))

    await field.nats.subscribe(event_subject(run.trace_id), hear)
    await field.nats.flush()
    return told


async def ended(field: Field, run: Run) -> RunRecord:
    async with asyncio.timeout(WAIT_S):
        while True:
            record = await field.store.find(run.trace_id)
            assert record is not None
            if record.status.terminal:
                return record
            await asyncio.sleep(0.05)


async def until_finished(told: list[RunEvent]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not any(isinstance(event.body, FinishedEvent) for event in told):
            await asyncio.sleep(0.05)


async def recorded(field: Field, run_id: str, steps: set[str]) -> None:
    """Dagster's events are written a moment after they happen."""
    async with asyncio.timeout(WAIT_S):
        while True:
            done = await asyncio.to_thread(field.instance.all_logs, run_id, DagsterEventType.STEP_SUCCESS)
            if steps <= {str(step.step_key) for step in done}:
                return
            await asyncio.sleep(0.05)


async def test_a_worker_is_killed_and_another_finishes_its_run(field: Field) -> None:
    first = field.worker(hanging="A")
    run = await field.submit()
    told = await tapped(field, run)
    await field.events(run, until=is_token)
    record = await field.store.find(run.trace_id)
    assert record is not None
    first.kill()
    first.join(10)
    field.worker()
    events = await field.events(run)
    assert [event.seq for event in events] == list(range(len(events)))
    end = events[-1].body
    assert isinstance(end, FinishedEvent)
    assert end.reason == "stop", end.error
    assert sum(isinstance(event.body, RoleEvent) for event in events) == 1
    await until_finished(told)
    assert sum(isinstance(event.body, FinishedEvent) for event in told) == 1
    assert (await ended(field, run)).status is RunStatus.SUCCEEDED
    child = await field.dagster_run(run, take=2)
    assert child.parent_run_id == child.root_run_id == dagster_run_id(run.trace_id, 1)
    assert (await field.dagster_run(run, take=1)).status is DagsterRunStatus.FAILURE


async def test_finished_tasks_are_not_asked_again(field: Field) -> None:
    first = field.worker(hanging="C")
    run = await field.submit()
    told = await tapped(field, run)
    await field.events(run, until=two_are_done)
    async with asyncio.timeout(WAIT_S):  # C may have been asked last
        while not any(token.task == "C" for token in tokens(told)):
            await asyncio.sleep(0.05)
    await recorded(field, dagster_run_id(run.trace_id, 1), {"argue[A]", "argue[B]"})
    first.kill()
    first.join(10)
    assert sorted(asked(field)) == ["A", "B", "C"]
    field.worker()
    events = await field.events(run)
    assert sorted(asked(field)) == ["A", "B", "C", "C-t2"], "finished tasks were asked again, or the judge needlessly"
    drafts = [(token.task, token.attempt, token.text) for token in tokens(events) if token.task]
    assert sorted(drafts) == [("A", 1, "Paris"), ("B", 1, "Paris"), ("C", 1, "x"), ("C", 2, "Paris")]
    end = events[-1].body
    assert isinstance(end, FinishedEvent)
    assert end.reason == "stop", end.error
    assert end.debate is not None
    assert sorted((t.task, t.usage.completion_tokens) for t in end.debate.tasks) == [("A", 1), ("B", 1), ("C", 1)]
    await until_finished(told)
    assert sum(isinstance(event.body, FinishedEvent) for event in told) == 1
    await ended(field, run)

    root, child = dagster_run_id(run.trace_id, 1), await field.dagster_run(run, take=2)
    assert (child.tags["dagster/parent_run_id"], child.tags["dagster/root_run_id"]) == (root, root)
    async with asyncio.timeout(WAIT_S):
        while (await field.dagster_run(run, take=2)).status is not DagsterRunStatus.SUCCESS:
            await asyncio.sleep(0.05)
    steps = await asyncio.to_thread(field.instance.all_logs, child.run_id, DagsterEventType.STEP_START)
    assert {step.step_key for step in steps} >= {"argue[C]", "decide", "commit"}
    assert "plan" not in {step.step_key for step in steps}
    kept = StepOutputs(field.instance.run_storage.engine)  # type: ignore[attr-defined]  # ours, see storage.py
    async with asyncio.timeout(WAIT_S):
        while await asyncio.to_thread(kept.load, root):
            await asyncio.sleep(0.05)


def asked(field: Field) -> list[str]:
    """What all workers have asked of the replicas so far."""
    return (field.settings.state_dir / CALLS).read_text().split()


def tokens(events: list[RunEvent]) -> list[TokenEvent]:
    return [event.body for event in events if isinstance(event.body, TokenEvent)]


async def test_a_run_that_no_worker_will_get_again_is_ended_by_the_sweeper(field: Field) -> None:
    field.settings.queue_max_deliver = 1
    first = field.worker(hanging="A")
    run = await field.submit()
    await field.events(run, until=is_token)
    first.kill()
    first.join(10)
    field.worker()
    end = (await field.events(run))[-1].body
    assert isinstance(end, FinishedEvent)
    assert (end.reason, (end.error or {})["code"]) == ("error", "unavailable")
    record = await ended(field, run)
    assert (record.status, record.attempt) == (RunStatus.FAILED, 2)
    async with asyncio.timeout(WAIT_S):
        while (await field.dagster_run(run)).status is not DagsterRunStatus.FAILURE:
            await asyncio.sleep(0.05)


async def test_a_worker_that_froze_stops_the_run_that_was_ended_meanwhile(field: Field) -> None:
    frozen = field.worker(hanging="A")
    run = await field.submit()
    told = await tapped(field, run)
    # Nothing may be on its way out when it freezes: what is sent already cannot be held back.
    await field.events(run, until=two_are_done)
    async with asyncio.timeout(WAIT_S):
        while not any(token.task == "A" for token in tokens(told)):
            await asyncio.sleep(0.05)
    pause(frozen)
    field.worker()
    assert (await ended(field, run)).status is RunStatus.FAILED
    await until_finished(told)
    resume(frozen)
    async with asyncio.timeout(WAIT_S):  # its Dagster run ends: nothing of it works on
        while not (await field.dagster_run(run)).is_finished:
            await asyncio.sleep(0.05)
    assert sum(isinstance(event.body, FinishedEvent) for event in told) == 1
    assert isinstance(told[-1].body, FinishedEvent), "the frozen worker published after the end"


async def test_a_run_that_waits_in_the_queue_is_not_abandoned(field: Field) -> None:
    field.worker(hanging="A", runs_per_worker=1)
    busy = await field.submit()
    await field.events(busy, until=is_token)
    waiting = await field.submit()
    taken, queued = [await field.store.find(run.trace_id) for run in (busy, waiting)]
    assert taken is not None
    assert queued is not None
    assert taken.lease_until < time.time() + field.settings.lease_s + 1, "its worker must make the lease short at once"
    assert queued.lease_until > waiting.deadline
    await field.bus.publish_cancel(busy.trace_id, "make room")
    await field.events(waiting, until=is_token)


async def test_the_deployed_worker_sweeps(field: Field) -> None:
    abandoned = make_run()
    await field.store.claim(abandoned, lease_s=-1)
    deployed = field.worker(DEPLOYED, lease_s=0.5, queue_ack_wait_s=0.2)
    assert (await ended(field, abandoned)).status is RunStatus.FAILED
    deployed.terminate()
    await asyncio.to_thread(deployed.join, 40)
    assert deployed.exitcode == 0
