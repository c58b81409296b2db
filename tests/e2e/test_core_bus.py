"""bus=core, two gateways, everything embedded: all routes work, with the weaker promise that core makes."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.nats_tap import tapped
from tests.e2e.stack_under_test import RunningStack, running_stack, until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stack() -> Iterator[RunningStack]:
    with running_stack("simulated", bus="core", gateway_replicas="2") as running:
        yield running


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "sim-small", "messages": [{"role": "user", "content": f"{text} {time.time_ns()}"}], **fields}


async def test_every_route(stack: RunningStack) -> None:
    async with tapped(stack.info["nats"]) as tap, stack.http() as http:
        body = ask("hello")
        direct = await http.post("/v1/chat/completions", json=body)
        again = await http.post("/v1/chat/completions", json=body)
        debate = await http.post("/v1/chat/completions", json={**body, "model": "debate"})
        streamed = await http.post("/v1/chat/completions", json={**ask("hello"), "model": "debate", "stream": True})
        for response in (direct, again, debate, streamed):
            assert response.status_code == 200, response.text
            await tap.whole_run(response.headers["x-trace-id"])
    assert again.headers["x-cache"] == "exact"
    assert streamed.headers["x-resume"] == "unavailable"
    assert streamed.text.endswith("data: [DONE]\n\n")


async def test_identical_requests_over_both_gateways_share_one_execution(stack: RunningStack) -> None:
    body = ask("shared", model="sim-large", max_tokens=80)
    async with tapped(stack.info["nats"]) as tap, stack.http() as http:
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(40)))
        assert {a.status_code for a in answers} == {200}, [a.text for a in answers if a.status_code != 200][:1]
        assert len({a.json()["choices"][0]["message"]["content"] for a in answers}) == 1
        executed = [trace_id for trace_id, events in tap.events.items() if len(events) > 10]
    assert len(executed) == 1


async def test_leaving_stops_a_debate(stack: RunningStack) -> None:
    body = ask("long", model="sim-large", x_route="workflow", max_tokens=4000)
    async with tapped(stack.info["nats"]) as tap:

        async def ask_and_stay() -> None:
            async with stack.http() as http:
                await http.post("/v1/chat/completions", json=body)

        leaving = asyncio.ensure_future(ask_and_stay())
        await until(lambda: any(e["type"] == "token" for es in tap.events.values() for e in es), 20, "a first token")
        leaving.cancel()
        await asyncio.wait({leaving})
        events = await tap.whole_run(next(iter(tap.events)), timeout_s=20)
    assert events[-1]["reason"] == "cancelled"
    await stack.engines_idle(within_s=10)
