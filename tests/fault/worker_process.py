"""A warm worker in a process of its own, with scripted replicas: something a test can kill."""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from dagster_project.running.pull_loop import PullLoop
from dagster_project.running.runner import DebateRunner
from dagster_project.sweep_job import end_dagster_run
from dagster_project.warm.executor import StepHost
from dagster_project.warm.instance import open_instance
from dagster_project.worker import Worker
from serve_app.bus.connection import NatsConnection
from serve_app.bus.event_bus import NatsEventBus
from serve_app.bus.run_queue import run_queue
from serve_app.lifecycle.sweep import Sweeper
from serve_app.settings import Settings, settings_from_dict, settings_to_dict
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from serve_app.tasks import TaskOwner
from tests.integration.dagster_stand import Script, ScriptedReplicas

DEPLOYED = "deployed"
CALLS = "calls.txt"  # in state_dir: what all workers asked of the scripted replicas


class Surroundings:
    """The real parts around a worker, as one process holds them."""

    def __init__(self, settings: Settings, name: str) -> None:
        assert settings.postgres_dsn is not None
        assert settings.nats_url is not None
        self.settings = settings
        self.pool = PostgresPool(settings.postgres_dsn.get_secret_value(), application_name=name)
        self.store = PostgresRunStore(self.pool)
        self.nats = NatsConnection(settings.nats_url.get_secret_value(), name, reconnect_wait_s=0.1)
        self.bus = NatsEventBus.for_settings(self.nats, settings)
        self.queue = run_queue(self.nats, settings)

    async def open(self, stack: AsyncExitStack) -> None:
        stack.push_async_callback(self.pool.close)
        stack.push_async_callback(self.nats.close)
        await self.nats.wait_connected(10)


async def open_worker(around: Surroundings, replicas: Any, stack: AsyncExitStack) -> None:
    """A worker that pulls and sweeps until the stack is closed."""
    settings = around.settings
    instance = await asyncio.to_thread(open_instance, settings)
    stack.push_async_callback(asyncio.to_thread, instance.dispose)
    host = StepHost(asyncio.get_running_loop(), steps=16, steps_per_run=settings.tasks_per_run)
    stack.callback(host.close)
    runner = await asyncio.to_thread(DebateRunner, instance, host)
    await asyncio.to_thread(runner.warm_up)
    pulls = PullLoop(settings, store=around.store, bus=around.bus, queue=around.queue, replicas=replicas, runner=runner)
    stack.push_async_callback(pulls.close, 0)
    await pulls.start()
    sweeping = TaskOwner()
    stack.push_async_callback(sweeping.close)
    on_ended = partial(end_dagster_run, instance)
    sweeper = Sweeper(lambda: settings, store=around.store, bus=around.bus, queue=around.queue, on_ended=on_ended)
    sweeping.spawn(sweeper.run(), name="sweep")


class _Deployed(Worker):
    def __del__(self) -> None:  # type: ignore[override]
        """Only Serve awaits the real one."""


async def main(settings: Settings, hanging: str) -> None:
    replicas = ScriptedReplicas(judge=Script(("A",)), **{label: Script(("x",), hangs=True) for label in hanging})
    replicas.log = settings.state_dir / CALLS
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with AsyncExitStack() as stack:
        if hanging == DEPLOYED:
            worker = _Deployed.__new__(_Deployed)
            await worker.__init__(settings_to_dict(settings))  # type: ignore[misc]  # as Serve does
            stack.push_async_callback(worker.shutdown)
        else:
            around = Surroundings(settings, "worker-under-test")
            await around.open(stack)
            await open_worker(around, replicas, stack)
        await stopped.wait()


def run_worker(file: Path, hanging: str) -> None:
    """The life of the process, by the settings in a file; what it says goes beside that.

    `hanging`: tasks that say one token and no more, such as AB; or DEPLOYED, the worker as Serve makes it, with its own
    replicas.
    """
    with file.with_suffix(".log").open("wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    asyncio.run(main(settings_from_dict(json.loads(file.read_text())), hanging))
