"""bus=core, two gateways, everything embedded: all routes work, with the weaker promise that core makes."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.nats_tap import tapped
from tests.e2e.stack_under_test import RunningStack, running_stack, until

pytestmark = pytest.mark.timeout(600)

# Two as in simulated.yaml, and one that carries little: four places of 0.375 s an answer of twelve tokens.
MODELS: list[dict[str, Any]] = [
    {"model_id": "sim-small", "simulated": {"ttft_ms": 20, "itl_ms": 5, "seed": 1}},
    {"model_id": "sim-large", "simulated": {"ttft_ms": 60, "itl_ms": 15, "seed": 2}},
    {"model_id": "sim-narrow", "simulated": {"ttft_ms": 100, "itl_ms": 25, "seed": 3}, "max_ongoing_requests": 4},
]
for model in MODELS:
    model.update(engine="simulated", num_cpus=0.1, replicas=1)
NARROW_CEILING = 4 / (0.1 + 11 * 0.025)  # requests/s


@pytest.fixture(scope="module")
def stack() -> Iterator[RunningStack]:
    with running_stack("simulated", bus="core", gateway_replicas="2", models=json.dumps(MODELS)) as running:
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
    await stack.engines_idle(within_s=30)  # the answer would take a minute


def study(stack: RunningStack, out: Path) -> tuple[dict[str, Any], str]:
    """What `aifactory capacity` found out about the narrow replica, and what it printed."""
    options = ("--model", "sim-narrow", "--ttft-p95", "1", "--output-tokens", "12", "--rate", "20", "--out", str(out))
    pace = ("--level-s", "2", "--requests", "60", "--step-s", "6", "--loads", "2,5,8,12,18")
    done = stack.command("capacity", *options, *pace, timeout_s=240)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return json.loads(out.with_suffix(".json").read_text()), done.stdout


def shows_the_knee(known: dict[str, Any]) -> bool:
    """Bounds are wide: whoever else uses the machine moves the knee."""
    measured, predicted = known["measured_knee"], known["predicted_knee"]
    if measured is None or predicted is None:
        return False
    return bool(0.3 * NARROW_CEILING < measured < 1.3 * NARROW_CEILING and 0.6 < predicted / measured < 1.7)


@pytest.mark.timeout(1200)
def test_capacity_finds_the_knee_where_the_replica_has_it(stack: RunningStack, tmp_path: Path) -> None:
    """Here because a stack runs."""
    out = tmp_path / "study"
    studies = [study(stack, out)]
    if not shows_the_knee(studies[0][0]):  # one stall of a second hides it: then two others must both show it
        studies = [study(stack, out), study(stack, out)]
    for known, said in studies:
        assert shows_the_knee(known), said
        assert len(known["measured"]) == 5
        assert known["replica"]["step_s"] > 0.024
        assert known["advice"]["replicas"] >= 2, said
        assert "knee: measured" in said

    offline = stack.command("capacity", "--replica", str(out.with_suffix(".json")), "--no-plot", "--out", str(tmp_path / "again"))
    assert offline.returncode == 0, offline.stderr
    assert "knee: predicted" in offline.stdout
    wrong = stack.command("capacity", "--model", "nobody", "--no-plot")
    assert wrong.returncode == 1
    assert "it has sim-small, sim-large, sim-narrow" in wrong.stderr
