"""The embedded default on a real engine: what README promises, asked with the real OpenAI client."""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import openai
import pytest

from tests.e2e.nats_tap import tapped
from tests.e2e.prometheus_under_test import prometheus_of
from tests.e2e.stack_under_test import QUICK_METRICS, RunningStack, running_stack, until
from tests.prometheus_files import DASHBOARDS, alert_queries, dashboard_queries

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

MODEL = "smollm2-135m"
CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def stack() -> Iterator[RunningStack]:
    with running_stack("local", QUICK_METRICS) as running:
        yield running


async def test_direct_says_paris(stack: RunningStack) -> None:
    async with stack.sdk() as sdk:
        whole = await sdk.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, extra_body={"x_cache": {"mode": "bypass"}}
        )
        pieces = []
        async for chunk in await sdk.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, stream=True, extra_body={"x_cache": {"mode": "bypass"}}
        ):
            pieces.append(chunk.choices[0].delta.content or "")
    assert "Paris" in (whole.choices[0].message.content or "")
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(1 for p in pieces if p) >= 5  # a chunk per token, not one clump


async def test_every_route_publishes_its_events(stack: RunningStack) -> None:
    async with tapped(stack.info["nats"]) as tap, stack.http() as http:
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0, "max_tokens": 8}
        direct = await http.post("/v1/chat/completions", json=ask)
        again = await http.post("/v1/chat/completions", json=ask)
        debate = await http.post("/v1/chat/completions", json={**ask, "model": "debate"})
        assert [direct.status_code, again.status_code, debate.status_code] == [200, 200, 200]
        direct_events = await tap.whole_run(direct.headers["x-trace-id"])
        cached_events = await tap.whole_run(again.headers["x-trace-id"])
        debate_events = await tap.whole_run(debate.headers["x-trace-id"])
    for events in (direct_events, cached_events, debate_events):
        assert {"role", "token", "usage", "finished"} <= {e["type"] for e in events}
    assert {e["task"] for e in debate_events if e["type"] == "token" and "task" in e} == {"A", "B", "C"}
    assert debate_events[-1]["winner"] == MODEL
    assert "".join(e["text"] for e in cached_events if e["type"] == "token") == "".join(
        e["text"] for e in direct_events if e["type"] == "token"
    )


async def test_debate_streams_drafts_and_the_winners_text(stack: RunningStack) -> None:
    drafts: dict[str, str] = {"A": "", "B": "", "C": ""}
    answer, factory = "", None
    async with stack.sdk() as sdk:
        stream = await sdk.chat.completions.create(model="debate", messages=CAPITAL, stream=True, max_tokens=24)
        async for chunk in stream:
            extra = chunk.model_extra or {}
            factory = extra.get("x_factory", factory)
            if chunk.choices:
                delta = chunk.choices[0].delta
                if "x_task" in extra:
                    drafts[extra["x_task"]] += (delta.model_extra or {})["reasoning_content"]
                answer += delta.content or ""
    assert all(drafts.values())
    assert factory is not None
    winner = factory["debate"]["winner"]
    assert answer == drafts[winner]
    assert {t["task"] for t in factory["debate"]["tasks"]} == {"A", "B", "C"}
    await _check_dagster(stack, factory["trace_id"])


async def _check_dagster(stack: RunningStack, trace_id: str) -> None:
    """The run is in Dagster's own storage: SUCCESS, tagged, with the artifact as a materialization, its ops overlapping."""
    dsn = stack.info["postgres"].rsplit("/", 1)[0] + "/dagster"
    connection = await asyncpg.connect(dsn)
    try:

        async def run() -> Any:
            return await connection.fetchrow(
                "SELECT r.run_id, r.status, r.pipeline_name FROM runs r JOIN run_tags t USING (run_id) "
                "WHERE t.key = 'trace_id' AND t.value = $1",
                trace_id,
            )

        async def succeeded() -> bool:
            row = await run()
            return row is not None and row["status"] == "SUCCESS"

        await until(succeeded, 10, "Dagster run SUCCESS")
        row = await run()
        assert row["pipeline_name"] == "debate"
        rows = await connection.fetch("SELECT key, value FROM run_tags WHERE run_id = $1", row["run_id"])
        tags = {tag["key"]: tag["value"] for tag in rows}
        assert len(tags["req_id"]) == 64
        assert tags["project"]
        events = await connection.fetch(
            "SELECT dagster_event_type AS kind, step_key, event FROM event_logs WHERE run_id = $1 ORDER BY id", row["run_id"]
        )
    finally:
        await connection.close()
    kinds = [e["kind"] for e in events]
    assert "ASSET_MATERIALIZATION" in kinds
    times = {
        (e["kind"], e["step_key"]): json.loads(e["event"])["timestamp"]
        for e in events
        if (e["step_key"] or "").startswith("argue")
    }
    starts = [t for (kind, _), t in times.items() if kind == "STEP_START"]
    ends = [t for (kind, _), t in times.items() if kind == "STEP_SUCCESS"]
    assert len(starts) == len(ends) == 3
    assert max(starts) < min(ends)  # all three were at work at once


async def test_tokens_come_one_by_one(stack: RunningStack) -> None:
    async with stack.sdk() as sdk:
        stamps = []
        async for chunk in await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count from one to twenty in words."}], stream=True, max_tokens=40
        ):
            if chunk.choices and chunk.choices[0].delta.content:
                stamps.append(time.perf_counter())
    gaps = [b - a for a, b in itertools.pairwise(stamps)]
    # Clumps would show as many gaps near zero between a few long ones.
    assert sum(gap < 0.002 for gap in gaps) <= len(gaps) * 0.25, f"median gap {statistics.median(gaps):.4f} s"


@pytest.mark.parametrize("body", [{"stream": True}, {}, {"x_route": "workflow", "stream": True}, {"x_route": "workflow"}])
async def test_engine_stops_when_the_client_leaves(stack: RunningStack, body: dict[str, Any]) -> None:
    ask = {
        "model": MODEL,
        "max_tokens": 1500,
        "messages": [{"role": "user", "content": f"Write a very long story. {time.time()}"}],
        **body,
    }

    async def ask_and_stay() -> None:
        async with stack.http() as http, http.stream("POST", "/v1/chat/completions", json=ask) as response:
            async for _ in response.aiter_raw():
                pass

    async with tapped(stack.info["nats"]) as tap:
        leaving = asyncio.ensure_future(ask_and_stay())
        await until(lambda: any(e["type"] == "token" for es in tap.events.values() for e in es), 60, "a first token")
        leaving.cancel()
        left = time.monotonic()
        await asyncio.wait({leaving})
        trace_id = next(iter(tap.events))
        events = await tap.whole_run(trace_id, timeout_s=20)
        assert time.monotonic() - left < 20
    assert events[-1]["reason"] == "cancelled"
    await stack.engines_idle(within_s=10)


async def test_models_embeddings_completions(stack: RunningStack) -> None:
    async with stack.sdk() as sdk:
        assert {m.id async for m in sdk.models.list()} >= {MODEL, "minilm-l6-v2", "debate"}
        vectors = await sdk.embeddings.create(model="minilm-l6-v2", input=["a cat", "a kitten", "tax law"])
        cat, kitten, tax = (d.embedding for d in vectors.data)
        assert sum(x * y for x, y in zip(cat, kitten, strict=True)) > sum(x * y for x, y in zip(cat, tax, strict=True)) + 0.3
        completion = await sdk.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
        assert "Paris" in completion.choices[0].text


async def test_engine_refusals_are_400_and_it_goes_on(stack: RunningStack) -> None:
    async with stack.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await sdk.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=100_000)
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=-1)
        answer = await sdk.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
        assert "Paris" in (answer.choices[0].message.content or "")


async def test_second_up_finds_the_running_stack(stack: RunningStack) -> None:
    again = await asyncio.to_thread(stack.command, "up", "--no-demo", "--config", "local")
    assert again.returncode == 0
    assert "already running" in again.stdout
    status = await asyncio.to_thread(stack.status)
    assert status["ready"] is True
    assert set(status) >= {
        "ready",
        "api",
        "api_key_file",
        "ray_dashboard",
        "dagster",
        "nats",
        "postgres",
        "state_dir",
        "replicas",
    }


async def test_metrics_and_logs_carry_the_run(stack: RunningStack) -> None:
    async with stack.http() as http:
        answer = await http.post(
            "/v1/chat/completions",
            json={"model": "debate", "messages": [{"role": "user", "content": f"Say hi. {time.time()}"}], "max_tokens": 6},
        )
        trace_id = answer.headers["x-trace-id"]
        sd = json.loads((stack_run_dir(stack) / "ray" / "prom_metrics_service_discovery.json").read_text())
        targets = [t for entry in sd for t in entry["targets"]]

        async def exported() -> bool:
            text = "".join([(await http.get(f"http://{target}/metrics")).text for target in targets])
            return all(name in text for name in ("aifactory_runs_total", "aifactory_requests_total", "aifactory_task_seconds"))

        await until(exported, 60, "aifactory_* metrics at Ray's endpoint")
    logs = (stack_run_dir(stack) / "ray" / "session_latest" / "logs").glob("worker-*.err")
    lines = [json.loads(line) for path in logs for line in path.read_text(errors="replace").splitlines() if line.startswith("{")]
    of_run = [line for line in lines if line.get("trace_id") == trace_id]
    assert "worker" in {line["component"] for line in of_run}
    assert not any("Say hi." in json.dumps(line) for line in lines)  # prompts are not logged


async def test_every_query_about_engines_has_data(stack: RunningStack) -> None:
    [dashboard] = [path for path in DASHBOARDS if path.stem == "aifactory-engines"]
    asked = {metric for query in alert_queries() for metric in query.metrics if metric.startswith("ray_vllm_")}
    async with stack.http() as http, prometheus_of(stack) as prometheus:

        async def work() -> None:
            ask = {"model": MODEL, "messages": [{"role": "user", "content": f"Name a colour. {time.time_ns()}"}], "max_tokens": 8}
            assert (await http.post("/v1/chat/completions", json=ask)).status_code == 200
            await asyncio.sleep(1)  # a pace for the load, not a wait for anything

        await prometheus.all_have_data(dashboard_queries(dashboard), work, within_s=240)
        await prometheus.all_known(asked)


def stack_run_dir(stack: RunningStack) -> Any:
    from pathlib import Path

    return Path(json.loads((Path(stack.info["state_dir"]) / "stack.json").read_text())["run_dir"])
