"""The load generator against a real gateway on a socket: when latencies begin, what is asked, what a fault becomes."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from serve_app.capacity.load import connect
from serve_app.capacity.workload import Pace, Workload
from serve_app.errors import Overloaded
from serve_app.events import EventBody
from tests.integration.gateway_server import KEY, ScriptedReplicas, serve_gateway

PACE = Pace(requests=40, least_s=2, most_s=2, warm_share=0.0)
WORKLOAD = Workload("m", prompt_tokens=8, output_tokens=4)


class FrozenReplicas(ScriptedReplicas):
    """Says nothing before `thaw` is set, then everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.thaw = asyncio.Event()

    async def stream(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[EventBody, None]:
        await self.thaw.wait()
        async for event in super().stream(model, adapter, body, request_id=request_id):
            yield event


async def test_a_frozen_system_does_not_slow_the_arrivals_and_the_whole_wait_counts() -> None:
    replicas = FrozenReplicas()
    async with serve_gateway({"replicas": replicas}) as gateway, connect(f"{gateway.url}/v1", KEY, WORKLOAD) as load:
        asyncio.get_running_loop().call_later(2.5, replicas.thaw.set)
        figures = await load.step(20, PACE)
    assert figures.requests == 40
    assert figures.failed_share == 0
    assert figures.throughput == 0, "nothing ended within the step"
    # Who came first waited about 2.5 s, who came last about half a second.
    assert figures.ttft_p95 > 2.0
    assert 0.8 < figures.ttft_p50 < 3.5
    assert figures.waiting > 15


async def test_each_question_is_new_and_the_cache_is_passed_by() -> None:
    replicas = ScriptedReplicas()
    async with serve_gateway({"replicas": replicas}) as gateway, connect(f"{gateway.url}/v1", KEY, WORKLOAD) as load:
        level = await load.level(3, 1, 0.5)
        assert not load.errors
    assert len(level.first) >= 3
    assert 1 <= level.concurrency <= 3.01
    assert level.prompt_tokens == 5
    assert len(replicas.bodies) == len({str(body["messages"]) for body in replicas.bodies}) >= 6
    assert {body["max_tokens"] for body in replicas.bodies} <= {3, 4, 5}, "clients do not run in step"


async def test_refusals_count_and_are_named() -> None:
    replicas = ScriptedReplicas(error=Overloaded("no room"))
    async with (
        serve_gateway({"replicas": replicas}, replica_retries=0) as gateway,
        connect(f"{gateway.url}/v1", KEY, WORKLOAD) as load,
    ):
        figures = await load.step(20, PACE)
    assert figures.failed_share == 1
    assert figures.tokens_per_s == 0
    assert sum(load.errors.values()) == 40
    assert any("no room" in error for error in load.errors)
