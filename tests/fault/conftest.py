"""Real Postgres, real NATS, and workers in processes of their own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun

from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.instance import open_instance
from serve_app.events import RunEvent
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.runs import Run
from serve_app.settings import Settings, settings_to_dict
from tests.contracts.conftest import NatsServer, own_nats  # noqa: F401 - a fixture
from tests.fault.worker_process import Surroundings
from tests.integration.dagster_stand import make_run

WAIT_S = 80.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fault_settings(postgres_dsn: str, own_nats: NatsServer, tmp_path: Path) -> Settings:  # noqa: F811 - the fixture
    """Settings whose waits suit tests."""
    return Settings(
        config="simulated",
        state_dir=tmp_path,
        postgres_dsn=postgres_dsn,
        nats_url=own_nats.url,
        lease_s=5,
        queue_ack_wait_s=2,
        runs_per_worker=4,
        tasks_per_run=4,
    )


class Field(Surroundings):
    """The test's own place beside the workers: it submits runs as a gateway does, and reads them."""

    def __init__(self, settings: Settings, instance: DagsterInstance) -> None:
        super().__init__(settings, "test")
        self.instance = instance
        self._workers: list[subprocess.Popen[bytes]] = []

    def worker(self, hanging: str = "", **changes: Any) -> subprocess.Popen[bytes]:
        """A worker in a process of its own. The tasks named in `hanging` say one token and no more."""
        file = self.settings.state_dir / f"worker-{len(self._workers)}.json"
        file.write_text(json.dumps(settings_to_dict(self.settings.model_copy(update=changes))))
        command = [sys.executable, "-m", "tests.fault.worker_process", str(file), hanging]
        with file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self._workers.append(process)
        return process

    async def submit(self, **question: Any) -> Run:
        """Claim a run and put it into the queue, as a gateway does."""
        run = make_run(**question)
        assert (await self.store.claim(run, lease_s=waiting_lease_s(run, self.settings.lease_s))).claimed
        await self.queue.submit(run)
        return run

    async def events(self, run: Run, *, until: Callable[[RunEvent], bool] = lambda _: False) -> list[RunEvent]:
        """The run's events up to `finished`, or to the first that `until` accepts."""
        told = []
        async with asyncio.timeout(WAIT_S), self.bus.subscribe(run.trace_id) as events:
            async for event in events:
                told.append(event)
                if until(event):
                    break
        return told

    async def dagster_run(self, run: Run, take: int = 1) -> DagsterRun:
        found = await asyncio.to_thread(self.instance.get_run_by_id, dagster_run_id(run.trace_id, run.attempt, take))
        assert found is not None
        return found

    def end_workers(self) -> None:
        for process in self._workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._workers:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


@pytest.fixture
def dagster_instance(fault_settings: Settings) -> Iterator[DagsterInstance]:
    made = open_instance(fault_settings)
    yield made
    made.dispose()


@pytest.fixture
async def field(fault_settings: Settings, dagster_instance: DagsterInstance) -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        made = Field(fault_settings, dagster_instance)
        stack.callback(made.end_workers)
        await made.open(stack)
        yield made


def pause(process: subprocess.Popen[bytes]) -> None:
    """Stop a worker as a frozen machine would."""
    os.kill(process.pid, signal.SIGSTOP)


def resume(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGCONT)
