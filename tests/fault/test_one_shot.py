"""debate_launch: systemd. Each debate is a process of its own, started by a stand-in for `systemctl start`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from dagster import DagsterRunStatus

from dagster_project.entrypoints.run_debate import ASKED_WRONGLY
from serve_app.bus.run_json import encode_run
from serve_app.events import FinishedEvent, RunEvent
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.local.processes import child_environment
from serve_app.runs import Run, RunStatus, new_trace_id
from serve_app.settings import settings_to_dict
from serve_app.store.launches import PostgresLaunches
from tests.fault.conftest import Field
from tests.fault.one_shot_start import ROOT
from tests.fault.test_worker_crash import ended, is_token, tapped, until_finished
from tests.fault.worker_process import DEPLOYED
from tests.integration.dagster_stand import make_run

STARTER = "tests.fault.one_shot_start"
WAIT_S = 150.0  # two processes start here, one after the other, each of which loads Dagster

pytestmark = pytest.mark.timeout(2 * WAIT_S)


class OneShots:
    """Debates that are processes: their settings, their process ids, what they left in the database."""

    def __init__(self, field: Field) -> None:
        self.field = field
        # A process that is late counts as dead, and is followed by another: 15 s late now, and these tests count them.
        field.settings.lease_s = 30
        self.launches = PostgresLaunches(field.pool)
        self.folder = field.settings.state_dir
        self.file = self.folder / "one-shot.json"
        self.file.write_text(json.dumps(settings_to_dict(field.settings)))

    def worker(self, hanging: str = "", **changes: object) -> BaseProcess:
        """The deployed worker, which has replicas of its own that it must not need."""
        command = [sys.executable, "-m", STARTER, str(self.file), hanging, "{trace_id}"]
        return self.field.worker(DEPLOYED, debate_launch="systemd", debate_command=command, **changes)

    async def submit(self) -> Run:
        """A run that does not meet its deadline while processes start."""
        return await self.field.submit(timeout_s=2 * WAIT_S)

    async def events(self, run: Run, *, until: Callable[[RunEvent], bool] = lambda _: False) -> list[RunEvent]:
        """The run's events up to `finished`, or to the first that `until` accepts."""
        told = []
        async with asyncio.timeout(WAIT_S), self.field.bus.subscribe(run.trace_id) as events:
            async for event in events:
                told.append(event)
                if until(event):
                    break
        return told

    def pids(self, run: Run) -> list[int]:
        """The processes that were started for a run, in order."""
        file = self.folder / f"{run.trace_id}.pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    async def gone(self, run: Run) -> None:
        """Wait until no process of the run is left, and nothing of it in the database."""
        async with asyncio.timeout(WAIT_S):
            while any(_alive(pid) for pid in self.pids(run)) or await self.launches.find(run.trace_id) is not None:
                await asyncio.sleep(0.05)

    def end_all(self) -> None:
        for file in self.folder.glob("*.pids"):
            for pid in map(int, file.read_text().split()):
                if _alive(pid):
                    os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def one_shots(field: Field) -> Iterator[OneShots]:
    made = OneShots(field)
    yield made
    made.end_all()


async def test_each_run_has_a_process_that_leaves_nothing_behind(field: Field, one_shots: OneShots) -> None:
    worker = one_shots.worker()
    first, second = await one_shots.submit(), await one_shots.submit()
    for run in (first, second):
        events = await one_shots.events(run)
        assert [event.seq for event in events] == list(range(len(events)))
        end = events[-1].body
        assert isinstance(end, FinishedEvent)
        assert end.reason == "stop"
        record = await ended(field, run)
        assert record.status is RunStatus.SUCCEEDED
        assert record.dagster_run_id is not None
        await one_shots.gone(run)  # Dagster's record ends after `finished`, and before the process
        assert (await field.dagster_run(run)).status is DagsterRunStatus.SUCCESS
    assert len({*one_shots.pids(first), *one_shots.pids(second), worker.pid}) == 3
    async with asyncio.timeout(WAIT_S):  # acknowledged
        while await field.queue.backlog():
            await asyncio.sleep(0.05)


async def test_a_killed_process_is_followed_by_another_and_the_run_ends_once(field: Field, one_shots: OneShots) -> None:
    one_shots.worker(hanging="A")
    run = await one_shots.submit()
    told = await tapped(field, run)
    await one_shots.events(run, until=is_token)
    [victim] = one_shots.pids(run)
    os.kill(victim, signal.SIGKILL)
    events = await one_shots.events(run)
    assert [event.seq for event in events] == list(range(len(events)))
    assert isinstance(end := events[-1].body, FinishedEvent)
    assert end.reason == "stop", end.error
    await until_finished(told)
    await one_shots.gone(run)
    assert len(one_shots.pids(run)) == 2
    assert sum(isinstance(event.body, FinishedEvent) for event in told) == 1
    assert (await ended(field, run)).status is RunStatus.SUCCEEDED
    assert (await field.dagster_run(run, take=2)).status is DagsterRunStatus.SUCCESS


async def test_a_worker_that_dies_leaves_the_process_to_the_next_worker(field: Field, one_shots: OneShots) -> None:
    first = one_shots.worker(hanging="A")
    run = await one_shots.submit()
    await one_shots.events(run, until=is_token)
    first.kill()
    first.join(10)
    one_shots.worker()
    await field.bus.publish_cancel(run.trace_id, "enough")
    end = (await one_shots.events(run))[-1].body
    assert isinstance(end, FinishedEvent)
    assert end.reason == "cancelled"
    record = await ended(field, run)
    assert record.status is RunStatus.CANCELLED
    await one_shots.gone(run)
    assert len(one_shots.pids(run)) == 1, "the run had a process, and was started again"


async def test_a_command_that_fails_ends_the_run_honestly(field: Field, one_shots: OneShots) -> None:
    command = ["/bin/sh", "-c", "echo no such unit >&2; exit 5", "{trace_id}"]
    field.worker(DEPLOYED, debate_launch="systemd", debate_command=command, queue_max_deliver=2)
    field.settings.queue_max_deliver = 2
    run = make_run(timeout_s=3)
    await field.store.claim(run, lease_s=waiting_lease_s(run, field.settings.lease_s))
    await field.queue.submit(run)
    end = (await one_shots.events(run))[-1].body
    assert isinstance(end, FinishedEvent)
    assert end.reason == "error"
    assert (await ended(field, run)).status is RunStatus.FAILED


async def test_a_cancelled_run_gets_no_process(field: Field, one_shots: OneShots) -> None:
    run = await one_shots.submit()
    await field.store.request_cancel(run.trace_id, "enough")
    one_shots.worker()
    end = (await one_shots.events(run))[-1].body
    assert isinstance(end, FinishedEvent)
    assert end.reason == "cancelled"
    assert (await ended(field, run)).status is RunStatus.CANCELLED
    assert one_shots.pids(run) == []


def entrypoint(state_dir: Path, trace_id: str) -> subprocess.CompletedProcess[str]:
    """The real module, as systemd starts it."""
    return subprocess.run(
        [sys.executable, "-m", "dagster_project.entrypoints.run_debate"],
        env=child_environment({"TRACE_ID": trace_id, "AIFACTORY_STATE_DIR": str(state_dir)}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_the_entrypoint_says_what_it_needs(field: Field, one_shots: OneShots) -> None:
    wrong = await asyncio.to_thread(entrypoint, field.settings.state_dir, "not-a-trace-id")
    assert wrong.returncode == ASKED_WRONGLY
    assert "TRACE_ID" in wrong.stderr
    home = field.settings.state_dir / "dagster"
    home.mkdir(exist_ok=True)
    (home / "settings.json").write_text(one_shots.file.read_text())
    unknown = await asyncio.to_thread(entrypoint, field.settings.state_dir, new_trace_id())
    assert unknown.returncode == ASKED_WRONGLY
    assert "no launched run has this trace_id" in unknown.stderr


async def test_prompts_of_ended_runs_are_forgotten(field: Field, one_shots: OneShots) -> None:
    left, running = make_run(), make_run()
    await field.store.claim(running, lease_s=60)
    for run in (left, running):
        await one_shots.launches.put(run.trace_id, encode_run(run))
    await field.store.purge(older_than_s=3600, limit=10)  # the sweeper does it now and again
    assert await one_shots.launches.find(left.trace_id) is None
    assert await one_shots.launches.find(running.trace_id) == encode_run(running)
