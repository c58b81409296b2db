"""Workers follow the queue: real Ray Serve, real JetStream, real Postgres and Dagster; only the engine is simulated."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
import ray
from dagster import DagsterInstance, RunsFilter
from nats.aio.msg import Msg
from ray import serve

from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.instance import open_instance
from dagster_project.worker import DEPLOYMENT, build
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.replicas.client import ServeReplicas
from serve_app.runs import Run, RunStatus
from serve_app.settings import WORKER_APP_NAME, Settings, settings_to_dict
from tests.contracts.conftest import NatsServer, own_nats  # noqa: F401 - a fixture
from tests.fault.replica_cluster import inject, replica_cluster, simulated_model
from tests.fault.worker_process import Surroundings
from tests.integration.dagster_stand import make_run

pytestmark = [
    pytest.mark.timeout(600),  # Ray starts processes twice here
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's and grpc's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files open
]

WAIT_S = 120.0
MODEL = "small"
STALL = {"kind": "stall", "after": 1, "seconds": 900}


class Place(Surroundings):
    """The test's place beside the workers: submits runs as a gateway does, and counts their ends on the wire."""

    def __init__(self, settings: Settings, instance: DagsterInstance) -> None:
        super().__init__(settings, "test")
        self.instance = instance
        self.replicas = ServeReplicas(settings)
        self.finished: Counter[str] = Counter()

    async def hear(self, message: Msg) -> None:
        event = orjson.loads(message.data)
        self.finished[event["trace_id"]] += event["type"] == "finished"

    async def submit(self) -> Run:
        run = make_run(timeout_s=900)
        assert (await self.store.claim(run, lease_s=waiting_lease_s(run, self.settings.lease_s))).claimed
        await self.queue.submit(run)
        return run

    async def asks(self, count: int) -> bool:
        """Whether the engine holds this many requests."""
        held: int = sum(row["running"] + row["waiting"] for row in await self.replicas.stats())
        return held == count

    async def ended(self, *runs: Run) -> list[Run]:
        """Those of the runs that have ended."""
        records = {run.trace_id: await self.store.find(run.trace_id) for run in runs}
        return [run for run in runs if (record := records[run.trace_id]) is not None and record.status.terminal]


@pytest.fixture
async def place(
    local_ray: None,
    postgres_dsn: str,
    own_nats: NatsServer,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> AsyncIterator[Place]:
    settings = Settings(
        config="simulated",
        models=[simulated_model(MODEL, ttft_ms=0, itl_ms=0)],
        state_dir=tmp_path,
        postgres_dsn=postgres_dsn,
        nats_url=own_nats.url,
        workers=None,
        workers_min=1,
        workers_max=2,
        worker_idle_s=1,
        worker_grace_s=1,
        runs_per_worker=2,
        lease_s=10,
        queue_ack_wait_s=5,
        stall_timeout_s=900,
    )
    async with AsyncExitStack() as stack:
        stack.enter_context(replica_cluster(settings.models))
        instance = await asyncio.to_thread(open_instance, settings)
        stack.push_async_callback(asyncio.to_thread, instance.dispose)
        made = Place(settings, instance)
        await made.open(stack)
        await made.nats.subscribe("evt.chat.*", made.hear)
        await asyncio.to_thread(lambda: serve.run(build(settings), name=WORKER_APP_NAME, route_prefix=None))
        stack.callback(serve.delete, WORKER_APP_NAME)
        yield made


def workers() -> Counter[str]:
    """Number of workers by Serve's state."""
    return Counter(serve.status().applications[WORKER_APP_NAME].deployments[DEPLOYMENT].replica_states)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(WAIT_S):
            while not await condition():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_S:g} s: {what}; workers: {dict(workers())}") from None


def deploy_with(settings: Settings, **knobs: Any) -> None:
    """What `serve deploy` does with another user_config: as it is the same version, no worker is started again."""
    changed = {"user_config": settings.live() | knobs, "version": "from a file"}
    worker = build(settings)._bound_deployment.options(**changed, _internal=True)
    serve.run(worker.bind(settings_to_dict(settings)), name=WORKER_APP_NAME, route_prefix=None)


def worker_actors() -> set[str]:
    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{DEPLOYMENT}#" in actor["name"]}


async def test_live_settings_reach_a_worker_that_runs(place: Place) -> None:
    await asyncio.to_thread(deploy_with, place.settings)

    async def one() -> bool:
        return workers() == {"RUNNING": 1}

    await until(one, "a worker of this version")
    running = worker_actors()
    await inject(MODEL, STALL)
    await asyncio.to_thread(deploy_with, place.settings, stall_timeout_s=0.3)
    # Refused as a whole: what was in force stays, and no worker ends.
    await asyncio.to_thread(deploy_with, place.settings, stall_timeout_s=600, no_such_setting=1)
    run = await place.submit()

    async def ended() -> bool:
        return await place.ended(run) == [run]

    await until(ended, "debaters are given up after a short silence")
    record = await place.store.find(run.trace_id)
    assert record is not None
    assert (record.status, (record.error or {}).get("code")) == (RunStatus.FAILED, "upstream_failed")
    assert worker_actors() == running


async def test_workers_come_with_the_queue_and_go_without_losing_runs(place: Place) -> None:
    await inject(MODEL, STALL)
    first, second = await place.submit(), await place.submit()

    async def waiting(count: int) -> bool:
        return await place.queue.pending() == count

    await until(lambda: waiting(0), "the only worker takes two runs")
    assert workers() == {"RUNNING": 1}
    third = await place.submit()
    await until(lambda: waiting(1), "a worker takes no more runs than runs_per_worker")

    async def running(count: int) -> bool:
        return workers() == {"RUNNING": count}

    await until(lambda: running(2), "a second worker comes")
    await until(lambda: waiting(0), "and takes the third run")
    await until(lambda: place.asks(9), "three debaters of each run are in the middle of their answers")
    assert await place.queue.backlog() == 3
    assert await place.ended(first, second, third) == []

    # From here on an engine does not stall: what is handed back can be finished.
    await inject(MODEL)
    await place.bus.publish_cancel(first.trace_id, "the test wants it so")
    # Now each worker executes one run, and one worker is enough.

    async def one_is_through() -> bool:
        return len(await place.ended(second, third)) == 1

    await until(one_is_through, "a worker goes, its run is handed back and finished by the other one")
    [moved] = await place.ended(second, third)
    [stayed] = {second.trace_id, third.trace_id} - {moved.trace_id}

    await until(lambda: running(1), "one worker is left")
    await place.bus.publish_cancel(stayed, "the test is over")

    async def all_done() -> bool:
        return len(await place.ended(first, second, third)) == 3 and await place.queue.backlog() == 0

    await until(all_done, "every run ends")
    statuses = {run.trace_id: (await place.store.find(run.trace_id)) for run in (first, second, third)}
    assert {name: record.status for name, record in statuses.items() if record} == {
        first.trace_id: RunStatus.CANCELLED,
        moved.trace_id: RunStatus.SUCCEEDED,
        stayed: RunStatus.CANCELLED,
    }

    async def all_told() -> bool:
        return len(place.finished) == 3 and all(place.finished.values())

    await until(all_told, "every run has said its end")
    assert set(place.finished.values()) == {1}
    takes = await asyncio.to_thread(place.instance.get_runs, RunsFilter(tags={"trace_id": moved.trace_id}))
    parents = {take.tags["take"]: take.parent_run_id for take in takes}
    assert parents.keys() == {"1", "2"}, "the run was not handed back once, so this test has shown nothing"
    assert parents["2"] == dagster_run_id(moved.trace_id, moved.attempt, 1)
