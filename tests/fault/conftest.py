"""Real Postgres, real NATS, and workers in processes of their own."""

import asyncio
import json
import multiprocessing
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio
from dagster import DagsterInstance, DagsterRun

from bench.chaos.servers import MortalPostgres
from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.instance import open_instance
from serve_app.events import RunEvent
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.runs import Run
from serve_app.settings import Settings, settings_to_dict
from serve_app.store.migrate import migrate
from tests.contracts.conftest import NatsServer, own_nats  # noqa: F401 - a fixture
from tests.e2e.stack_under_test import server_folder
from tests.fault.worker_process import Surroundings, run_worker
from tests.integration.dagster_stand import make_run

WAIT_S = 80.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.fault.worker_process"])  # Dagster takes seconds to import: once is enough


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
        self._workers: list[BaseProcess] = []

    def worker(self, hanging: str = "", **changes: Any) -> BaseProcess:
        """A worker in a process of its own. The tasks named in `hanging` say one token and no more."""
        file = self.settings.state_dir / f"worker-{len(self._workers)}.json"
        file.write_text(json.dumps(settings_to_dict(self.settings.model_copy(update=changes))))
        process = _FORKS.Process(target=run_worker, args=(file, hanging))
        process.start()
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
            if process.is_alive():
                resume(process)
                process.terminate()
        for process in self._workers:
            process.join(15)
            if process.is_alive():
                process.kill()
                process.join(5)


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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mortal_server() -> AsyncIterator[MortalPostgres]:
    """A Postgres that tests may kill, with a migrated database to clone."""
    with server_folder() as folder:
        server = MortalPostgres(folder)
        try:
            await asyncio.to_thread(server.start)
            await migrate(server.dsn())
            yield server
        finally:
            server.stop()


@pytest.fixture
async def mortal_dsn(mortal_server: MortalPostgres) -> str:
    """The DSN of a fresh, migrated database on a server that this test may kill; the next one starts it again."""
    if not mortal_server.alive:
        await asyncio.to_thread(mortal_server.start)
    connection = await asyncpg.connect(mortal_server.dsn("postgres"))
    name, template = f"aif_mortal_{secrets.token_hex(4)}", urlsplit(mortal_server.dsn()).path[1:]
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    await connection.close()
    return mortal_server.dsn(name)


def pause(process: BaseProcess) -> None:
    """Stop a worker as a frozen machine would."""
    os.kill(process.pid or 0, signal.SIGSTOP)


def resume(process: BaseProcess) -> None:
    os.kill(process.pid or 0, signal.SIGCONT)
