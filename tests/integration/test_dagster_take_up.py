"""A run whose worker died is taken up by another: finished steps are skipped, nothing is said twice."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from dagster_project.debate import Draft
from dagster_project.jobs import debate_job
from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.step_outputs import OutputKey, RunOutputs, StepOutputs
from dagster_project.warm.storage import PooledRunStorage
from serve_app.events import EventBody, FinishedEvent, ProgressEvent, RoleEvent, TokenEvent, Usage
from serve_app.runs import Run, RunStatus
from serve_app.settings import Settings
from tests.integration.dagster_stand import WAIT_S, Script, ScriptedReplicas, Stand, bodies, make_run


async def test_a_run_whose_worker_died_is_run_again_as_a_child(settings: Settings, instance: DagsterInstance) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(A=Script(hangs=True), judge=Script(("A",))))
    async with stand.working():
        run = await stand.submit()
        async with asyncio.timeout(WAIT_S), stand.bus.subscribe(run.trace_id) as events:
            async for event in events:
                if isinstance(event.body, TokenEvent):
                    break
    assert (await stand.dagster_run(run)).status is DagsterRunStatus.FAILURE, "a worker that goes must not leave a run behind"
    record = await stand.store.find(run.trace_id)
    assert record is not None
    assert record.status is RunStatus.RUNNING
    stand.replicas.scripts["A"] = Script()
    async with stand.working() as pulls:
        told = bodies(await stand.events(run))
        await stand.until_quiet(pulls)
    assert isinstance(told[-1], FinishedEvent)
    assert told[-1].reason == "stop"
    assert sum(isinstance(b, RoleEvent) for b in told) == 1
    child = await stand.dagster_run(run, take=2)
    assert child.status is DagsterRunStatus.SUCCESS
    assert child.parent_run_id == dagster_run_id(run.trace_id, 1)


async def die_after(stand: Stand, run: Run, enough: Callable[[list[EventBody]], bool]) -> None:
    """Hold the debate until `enough` was told of it; then its worker goes."""
    told: list[EventBody] = []
    async with stand.working(), asyncio.timeout(WAIT_S), stand.bus.subscribe(run.trace_id) as events:
        async for event in events:
            told.append(event.body)
            if enough(told):
                return


async def take_up(stand: Stand, run: Run) -> list[EventBody]:
    """Another worker takes the run to its end; all that was told of it."""
    async with stand.working() as pulls:
        told = bodies(await stand.events(run))
        await stand.until_quiet(pulls)
    return told


def tokens(told: list[EventBody], task: str | None) -> list[tuple[int, int, str]]:
    """(round, attempt, text) of what a debater said; of the answer for None."""
    return [(b.round, b.attempt, b.text) for b in told if isinstance(b, TokenEvent) and b.task == task]


def kept(instance: DagsterInstance, run: Run) -> dict[OutputKey, bytes]:
    store = instance.run_storage
    assert isinstance(store, PooledRunStorage)
    return StepOutputs(store.engine).load(dagster_run_id(run.trace_id, 1))


async def test_a_debate_goes_on_in_its_second_round(settings: Settings, instance: DagsterInstance) -> None:
    replicas = ScriptedReplicas(A=Script(("Lyon",)), B_r2=Script(("Par",), hangs=True))
    stand = Stand(settings, instance, replicas)
    run = await stand.submit(rounds=2, strategy="vote")

    def enough(told: list[EventBody]) -> bool:
        two_done = ProgressEvent(step="round_2", done=2, of=3) in told
        return two_done and (2, 1, "Par") in tokens(told, "B")

    await die_after(stand, run, enough)
    assert await asyncio.to_thread(kept, instance, run)
    replicas.scripts["B_r2"] = Script()
    calls = len(replicas.calls)
    told = await take_up(stand, run)
    assert replicas.calls[calls:] == ["B-r2-t2"], "one debater had not finished"
    assert tokens(told, "B") == [(1, 1, "Paris"), (2, 1, "Par"), (2, 2, "Paris")]
    assert tokens(told, "A") == [(1, 1, "Lyon"), (2, 1, "Lyon")]
    end = told[-1]
    assert isinstance(end, FinishedEvent)
    assert end.debate is not None
    assert (end.debate.rounds, end.debate.winner) == (2, "B")
    assert sum(t.usage.completion_tokens for t in end.debate.tasks) == 6, "what the first worker's tasks took counts"
    assert await asyncio.to_thread(kept, instance, run) == {}, "outputs of a run that has ended"


async def test_a_half_written_answer_is_not_written_again(settings: Settings, instance: DagsterInstance) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(A=Script(("Lyon",)), writer=Script(("Once ", "upon "), hangs=True)))
    run = await stand.submit(strategy="synthesize")
    await die_after(stand, run, lambda told: len(tokens(told, None)) == 2)
    told = await take_up(stand, run)
    assert [text for _, _, text in tokens(told, None)] == ["Once ", "upon "]
    end = told[-1]
    assert isinstance(end, FinishedEvent)
    assert (end.reason, (end.error or {})["code"]) == ("error", "unavailable"), "a caller may ask again"
    assert sorted(stand.replicas.calls) == ["A", "B", "C", "writer"]
    child = await stand.dagster_run(run, take=2)
    assert child.tags["ended_by"] == "unavailable"
    said = await asyncio.to_thread(instance.all_logs, child.run_id, DagsterEventType.ENGINE_EVENT)
    assert any("part of it was sent" in log.message for log in said), "the UI says why"


async def test_a_draft_that_was_kept_before_dagster_knew_is_used(settings: Settings, instance: DagsterInstance) -> None:
    """A worker may be killed between the two; its Dagster run then has no trace of the finished task."""
    stand = Stand(settings, instance, ScriptedReplicas())
    run = await stand.submit(strategy="vote")
    store = instance.run_storage
    assert isinstance(store, PooledRunStorage)
    root = dagster_run_id(run.trace_id, 1)
    outputs = StepOutputs(store.engine)
    await asyncio.to_thread(outputs.create)
    draft = Draft(task="A", model="small", text="Rome", usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
    await asyncio.to_thread(RunOutputs(outputs, root, (Draft,)).keep, OutputKey("argue[A]"), draft)
    left = await asyncio.to_thread(
        instance.create_run_for_job, job_def=debate_job(), run_id=root, status=DagsterRunStatus.STARTED
    )
    async with aclosing(stand.queue.deliveries(limit=1)) as deliveries:
        await anext(deliveries)  # the worker that died
    told = await take_up(stand, run)
    assert sorted(stand.replicas.calls) == ["B-t2", "C-t2"]
    assert tokens(told, "A") == []
    end = told[-1]
    assert isinstance(end, FinishedEvent)
    assert end.debate is not None
    assert [task.usage.completion_tokens for task in end.debate.tasks] == [1, 1, 1]
    child = await stand.dagster_run(run, take=2)
    assert (child.parent_run_id, child.status) == (left.run_id, DagsterRunStatus.SUCCESS)


async def test_a_record_that_dagsters_ui_has_made_is_executed_itself(settings: Settings, instance: DagsterInstance) -> None:
    made = await asyncio.to_thread(
        instance.create_run_for_job,
        job_def=debate_job(),
        run_config={"ops": {"plan": {"config": {"question": "Capital of France?", "strategy": "vote"}}}},
    )
    stand = Stand(settings, instance, ScriptedReplicas())
    run = replace(make_run(strategy="vote"), dagster_run_id=made.run_id)
    assert (await stand.store.claim(run, lease_s=30)).claimed
    await stand.queue.submit(run)
    await take_up(stand, run)
    ended = await asyncio.to_thread(instance.get_run_by_id, made.run_id)
    assert ended is not None
    assert (ended.status, ended.tags["trace_id"]) == (DagsterRunStatus.SUCCESS, run.trace_id)
    assert await asyncio.to_thread(instance.get_run_by_id, dagster_run_id(run.trace_id, 1)) is None
    record = await stand.store.find(run.trace_id)
    assert record is not None
    assert record.dagster_run_id == made.run_id
