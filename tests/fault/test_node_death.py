"""The same stack on a Ray cluster of two nodes; the one without the head dies under load, all at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from random import Random

import psutil
import pytest
import pytest_asyncio

from bench.chaos.exchange import Exchange
from bench.chaos.ground import Ground, OwnRay, standing_ground
from bench.chaos.kills import ROLES, Killed
from bench.chaos.load import Load
from bench.chaos.story import Story, chaos
from tests.e2e.stack_under_test import until
from tests.fault.ray_nodes import FURTHER_IP, HEAD_IP, RayNodes, two_ray_nodes

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

SEED = 5
RUN_TIMEOUT_S = 40.0
LONG, LONG_TOKENS = 10, 800  # streams of 12 s that are in flight when the node dies
BEFORE_S, AFTER_S = 12.0, 25.0  # of load; Ray takes some 15 s to notice that a node is gone


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with two_ray_nodes() as standing:
        yield standing


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(nodes: RayNodes) -> AsyncIterator[Ground]:
    ray = OwnRay(nodes.address, nodes.head.variables())
    async with standing_ground(timeout_s=RUN_TIMEOUT_S, workers=2, ray=ray) as standing:
        yield standing


async def test_each_node_has_a_gateway_a_worker_and_a_replica_and_takes_requests(ground: Ground, nodes: RayNodes) -> None:
    seats = await ground.eyes.seats()
    for ip in (HEAD_IP, FURTHER_IP):
        assert {seat.role for seat in seats if seat.pid in nodes.pids(ip)} == set(ROLES), f"on {ip}"
    gateway = next(seat.pid for seat in seats if seat.role == "gateway" and seat.pid in nodes.pids(FURTHER_IP))
    async with ground.stack.http() as http:
        for _ in range(8):
            assert (await http.get("/healthz")).status_code == 200
    # The head's HAProxy reaches it at its node's address. (That of the further node finds the API's port taken: one machine.)
    await until(lambda: FURTHER_IP in served_from(gateway), 30, "HAProxy's connections to the gateway of the further node")


async def test_contract_holds_after_a_node_has_died_under_load(ground: Ground, nodes: RayNodes) -> None:
    seats = await ground.eyes.seats()
    struck_at = died_at = 0.0

    struck: list[Exchange] = []

    async def strike(done: list[Killed], load: Load) -> None:
        nonlocal struck_at, died_at
        await asyncio.sleep(BEFORE_S)
        async with asyncio.TaskGroup() as group:
            # Of this many, spread over two gateways and two replicas, some are on the node.
            long = [group.create_task(load.long_stream(Random(number), LONG_TOKENS)) for number in range(LONG)]
            await until(lambda: busy(ground, LONG), 20, "all the long streams at the engines")
            struck_at = time.time()
            gone, died_at = await asyncio.to_thread(nodes.kill, FURTHER_IP), time.time()
            done += [Killed(died_at, seat.role, seat.pid) for seat in seats if seat.pid in gone]
        struck.extend(task.result() for task in long)

    story = await chaos(ground, seed=SEED, strike=strike, seconds=BEFORE_S + AFTER_S, lanes=8)
    assert {kill.target for kill in story.killed} == set(ROLES)
    assert broken(story) == []
    assert all(seat.pid in nodes.pids(HEAD_IP) for seat in await ground.eyes.seats())
    # It was under load, and somebody noticed.
    assert all(struck_at < made.ended for made in struck)
    assert any(made.end in ("error", "broken") for made in struck)
    assert [made for made in keyed(story) if made.began < died_at], "no key was asked before"


async def busy(ground: Ground, least: int) -> bool:
    return await ground.eyes.busy() >= least


def keyed(story: Story) -> list[Exchange]:
    return [made for made in story.exchanges if made.key is not None]


def broken(story: Story) -> list[str]:
    return [f"{finding.name}: {case}" for finding in story.broken for case in finding.broken]


def served_from(pid: int) -> set[str]:
    """Addresses of the machine at which a process has incoming HTTP connections of HAProxy."""
    with suppress(psutil.NoSuchProcess):
        connections = psutil.Process(pid).net_connections("tcp4")
        listening = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN and one.laddr.ip == "0.0.0.0"}
        return {one.laddr.ip for one in connections if one.status == psutil.CONN_ESTABLISHED and one.laddr.port in listening}
    return set()
