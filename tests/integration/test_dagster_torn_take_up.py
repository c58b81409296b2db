"""A worker is killed between two events of Dagster's log: whoever takes its run up must leave no debater out.

The torn log is made by hand: a real debate is held until its debaters speak; then what the killed worker had not yet
written is deleted. Steps that start together write in any order, so any of them may be missing.
"""

import asyncio
from dataclasses import dataclass

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.runs.schema import RunsTable

from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.storage import PooledRunStorage
from serve_app.events import FinishedEvent
from serve_app.runs import Run
from serve_app.settings import Settings
from tests.integration.dagster_stand import WAIT_S, Script, ScriptedReplicas, Stand, bodies

LABELS = "ABC"


@dataclass(frozen=True)
class Tear:
    """How far the log goes, and who is asked when the run is taken up."""

    asked: tuple[str, ...]
    cut_after: tuple[DagsterEventType, str, str] | None = None  # the last event written: type, step, mapping key
    forgotten: tuple[str, ...] = ()  # steps of which no event was written


def wrote(log: EventLogEntry, kind: DagsterEventType, step: str, mapping_key: str = "") -> bool:
    event = log.dagster_event
    if event is None or event.event_type is not kind or log.step_key != step:
        return False
    return not mapping_key or event.step_output_data.step_output_handle.mapping_key == mapping_key


async def debate_until(stand: Stand, run: Run, *steps: tuple[DagsterEventType, str], take: int = 1) -> int:
    """Hold the debate until Dagster's log has all these events; then its worker goes. The id of the last event written."""
    dagster_id = dagster_run_id(run.trace_id, run.attempt, take)
    async with stand.working(), asyncio.timeout(WAIT_S):
        while True:
            read = await asyncio.to_thread(stand.instance.event_log_storage.get_records_for_run, dagster_id)
            logs = [record.event_log_entry for record in read.records]
            if all(any(wrote(log, kind, step) for log in logs) for kind, step in steps):
                return max(record.storage_id for record in read.records)
            await asyncio.sleep(0.01)


def tear(instance: DagsterInstance, run: Run, last: int, torn: Tear, take: int = 1) -> None:
    """Leave in Dagster's records what a worker had written that was killed at this point. Blocks."""
    store, log = instance.run_storage, SqlEventLogStorageTable.c
    assert isinstance(store, PooledRunStorage)
    dagster_id = dagster_run_id(run.trace_id, run.attempt, take)
    if torn.cut_after is not None:
        records = instance.event_log_storage.get_records_for_run(dagster_id).records
        (last,) = (r.storage_id for r in records if wrote(r.event_log_entry, *torn.cut_after))
    gone = (log.run_id == dagster_id) & ((log.id > last) | log.step_key.in_(torn.forgotten))
    with store.engine.begin() as connection:
        deleted = connection.execute(SqlEventLogStorageTable.delete().where(gone))
        assert deleted.rowcount > 0
        connection.execute(RunsTable.update().where(RunsTable.c.run_id == dagster_id).values(status="STARTED"))
    left = instance.all_logs(dagster_id)
    assert not [event.step_key for event in left if event.step_key in torn.forgotten]


async def taken_up(stand: Stand, run: Run, take: int = 2) -> tuple[list[str], FinishedEvent]:
    """The calls that another worker makes for the run, and its end."""
    before = len(stand.replicas.calls)
    stand.replicas.scripts.clear()
    async with stand.working() as pulls:
        end = bodies(await stand.events(run))[-1]
        await stand.until_quiet(pulls)
    assert isinstance(end, FinishedEvent)
    assert (await stand.dagster_run(run, take - 1)).status is DagsterRunStatus.FAILURE
    assert (await stand.dagster_run(run, take)).status is DagsterRunStatus.SUCCESS
    return sorted(stand.replicas.calls[before:]), end


def nobody_is_left_out(end: FinishedEvent, *, rounds: int) -> None:
    assert end.reason == "stop"
    assert end.debate is not None
    assert (end.debate.rounds, end.debate.stop_reason) == (rounds, "agreement")
    assert [(task.task, task.finish_reason) for task in end.debate.tasks] == [(label, "stop") for label in LABELS]


ALL = ("A-t2", "B-t2", "C-t2")
OUTPUT, SUCCESS, START = DagsterEventType.STEP_OUTPUT, DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_START


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(Tear(ALL, cut_after=(OUTPUT, "plan", "A")), id="one of plan's tasks told"),
        pytest.param(Tear(ALL, cut_after=(OUTPUT, "plan", "C")), id="all of plan's tasks told, not its end"),
        pytest.param(Tear(ALL, cut_after=(SUCCESS, "plan", "")), id="plan done, no task begun"),
        pytest.param(Tear(ALL, forgotten=("argue[B]", "argue[C]")), id="one task begun"),
        pytest.param(Tear(ALL, forgotten=("argue[A]",)), id="two tasks begun"),
        pytest.param(Tear(ALL), id="all tasks begun"),
    ],
)
async def test_no_task_is_lost_before_the_first_answer(settings: Settings, instance: DagsterInstance, torn: Tear) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(**{label: Script(hangs=True) for label in LABELS}))
    run = await stand.submit(strategy="vote")
    last = await debate_until(stand, run, *((START, f"argue[{label}]") for label in LABELS))
    await asyncio.to_thread(tear, instance, run, last, torn)
    asked, end = await taken_up(stand, run)
    assert tuple(asked) == torn.asked
    nobody_is_left_out(end, rounds=1)


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(Tear(("B-t2", "C-t2"), forgotten=("argue[C]",)), id="one done, one begun"),
        pytest.param(Tear(("B-t2", "C-t2"), forgotten=("argue[B]", "argue[C]")), id="one done, none begun"),
        pytest.param(Tear(("B-t2", "C-t2"), forgotten=("argue[A]",)), id="two begun, of one that is done no trace"),
    ],
)
async def test_no_task_is_lost_when_one_has_answered(settings: Settings, instance: DagsterInstance, torn: Tear) -> None:
    stand = Stand(settings, instance, ScriptedReplicas(B=Script(hangs=True), C=Script(hangs=True)))
    run = await stand.submit(strategy="vote")
    last = await debate_until(stand, run, (SUCCESS, "argue[A]"), (START, "argue[B]"), (START, "argue[C]"))
    await asyncio.to_thread(tear, instance, run, last, torn)
    asked, end = await taken_up(stand, run)
    assert tuple(asked) == torn.asked
    nobody_is_left_out(end, rounds=1)


AGAIN = ("A-r2-t2", "B-r2-t2", "C-r2-t2")


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(Tear(AGAIN, cut_after=(OUTPUT, "review_1", "A")), id="one of review's tasks told"),
        pytest.param(Tear(AGAIN, cut_after=(SUCCESS, "review_1", "")), id="review done, no task begun"),
        pytest.param(Tear(AGAIN, forgotten=("argue_2[B]", "argue_2[C]")), id="one task begun"),
        pytest.param(Tear(AGAIN, forgotten=("argue_2[A]",)), id="two tasks begun"),
    ],
)
async def test_no_task_is_lost_in_a_further_round(settings: Settings, instance: DagsterInstance, torn: Tear) -> None:
    scripts = {f"{label}_r2": Script(hangs=True) for label in LABELS}
    stand = Stand(settings, instance, ScriptedReplicas(A=Script(("Lyon",)), **scripts))
    run = await stand.submit(strategy="vote", rounds=2)
    last = await debate_until(stand, run, *((START, f"argue_2[{label}]") for label in LABELS))
    await asyncio.to_thread(tear, instance, run, last, torn)
    asked, end = await taken_up(stand, run)
    assert tuple(asked) == torn.asked
    nobody_is_left_out(end, rounds=2)


@pytest.mark.parametrize("lost", ["B", "C"])
async def test_no_task_is_lost_when_the_second_worker_dies_too(settings: Settings, instance: DagsterInstance, lost: str) -> None:
    """Its Dagster run is a child that was to execute some steps only."""
    stand = Stand(settings, instance, ScriptedReplicas(B=Script(hangs=True), C=Script(hangs=True)))
    run = await stand.submit(strategy="vote")
    await debate_until(stand, run, (SUCCESS, "argue[A]"), (START, "argue[B]"), (START, "argue[C]"))
    last = await debate_until(stand, run, (START, "argue[B]"), (START, "argue[C]"), take=2)
    child = await stand.dagster_run(run, 2)
    assert child.step_keys_to_execute is not None
    assert "argue[A]" not in child.step_keys_to_execute
    await asyncio.to_thread(tear, instance, run, last, Tear((), forgotten=(f"argue[{lost}]",)), 2)
    asked, end = await taken_up(stand, run, take=3)
    assert asked == ["B-t3", "C-t3"]
    nobody_is_left_out(end, rounds=1)
