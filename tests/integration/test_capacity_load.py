"""The load generator against a real gateway on a socket: when latencies begin, what is asked, what a fault becomes."""

import asyncio
from collections.abc import AsyncGenerator
from itertools import cycle
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
    assert 0.8 < figures.ttft_p50 < figures.ttft_p95
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


ODD_CHUNKS = ["not JSON", "[]", "5", '{"choices": null}', '{"choices": ["x"]}', '{"choices": [{"delta": "x"}]}', '{"usage": "x"}',
              '{"usage": {"prompt_tokens": "many"}}', '{"usage": {"prompt_tokens": [1]}}', '{"error": "x"}']  # fmt: skip


async def test_an_odd_chunk_of_a_foreign_api_fails_its_request_only() -> None:
    odd = cycle(ODD_CHUNKS)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n' + f"data: {next(odd)}\n\ndata: [DONE]\n\n".encode())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", KEY, WORKLOAD) as load:
        figures = await load.step(20, PACE)
    assert (figures.requests, figures.failed_share) == (40, 1)
    assert load.errors
