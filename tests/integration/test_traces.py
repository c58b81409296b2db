"""Spans of a gateway as a collector gets them: one tree for each run, joined to the caller's trace where there is one."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from serve_app.errors import UpstreamFailed
from serve_app.lifecycle.sweep import Sweeper
from serve_app.settings import Settings
from serve_app.spans import Place
from serve_app.telemetry import logger
from serve_app.tracing import start_tracing
from tests.integration.gateway_server import ScriptedReplicas, serve_gateway, until
from tests.integration.trace_collector import (
    CALLER,
    CALLERS_SPAN,
    PATH,
    TRACEPARENT,
    Collector,
    Seen,
    collecting,
    collecting_from,
)

SECRET = "What is the capital of Xanadu?"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": SECRET}], "temperature": 0.5, "max_tokens": 64}
SERVER, CLIENT = 2, 3


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting_from("gateway", monkeypatch) as collector:
        yield collector


def children_of(spans: list[Seen], parent: Seen) -> list[str]:
    return sorted(span.name for span in spans if span.parent == parent.span_id)


def was_refused(collector: Collector, trace_id: str) -> bool:
    return len([span for span in list(collector.refused) if span.trace_id == trace_id]) == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_a_direct_run_is_one_tree_under_its_own_trace_id(collector: Collector, stream: bool) -> None:
    async with serve_gateway() as gateway, gateway.http() as http:
        response = await http.post("/v1/chat/completions", json={**ASK, "stream": stream})
        trace_id = response.headers["x-trace-id"]
        await collector.until(PATH, "run direct", "chat m", "recall semantic")

    spans = collector.of(trace_id)
    assert len(spans) == len(collector.spans) == 5
    assert all(span.facts["aifactory.trace_id"] == trace_id for span in spans)
    root, run, call = (collector.one(name) for name in (PATH, "run direct", "chat m"))
    assert (root.parent, root.span_id, root.kind, root.failed) == ("", trace_id[16:], SERVER, False)
    assert children_of(spans, root) == ["recall exact", "recall semantic", "run direct"]
    assert children_of(spans, run) == ["chat m"]
    assert root.start <= run.start <= call.start <= call.events["first token"] <= call.end <= run.end
    wanted = {"http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200}
    assert wanted.items() <= root.facts.items()
    assert {"aifactory.cache.result": "miss", "aifactory.route": "direct"}.items() <= root.facts.items()
    assert root.facts["gen_ai.request.stream"] is stream
    assert {"aifactory.outcome": "succeeded", "aifactory.usage.output_tokens": 4}.items() <= run.facts.items()
    assert {span.service for span in spans} == {"aifactory-gateway"}


async def test_a_call_to_a_model_follows_the_conventions(collector: Collector) -> None:
    async with serve_gateway() as gateway, gateway.http() as http:
        response = await http.post("/v1/chat/completions", json={**ASK, "model": "m:poet", "seed": 7})
        await collector.until("chat m:poet")
    call = collector.one("chat m:poet")
    assert call.kind == CLIENT
    first = call.facts.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < first < 30
    assert call.facts == {
        "aifactory.trace_id": response.headers["x-trace-id"],
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m:poet",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": "m:poet",
        "gen_ai.response.id": response.headers["x-trace-id"],
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 4,
    }


async def test_no_span_holds_what_was_said(collector: Collector) -> None:
    async with serve_gateway() as gateway, gateway.http() as http:
        await http.post("/v1/chat/completions", json=ASK)
        gateway.replicas.error = UpstreamFailed("the engine choked on Xanadu")
        await http.post("/v1/chat/completions", json={**ASK, "x_cache": {"mode": "bypass"}})
        await collector.until("run direct", count=2)
    assert collector.raw
    for raw in collector.raw:
        assert b"Xanadu" not in raw
        assert b"Paris" not in raw


async def test_the_callers_trace_is_joined_and_kept_beside_the_run(collector: Collector) -> None:
    async with serve_gateway() as gateway, gateway.http() as http:
        response = await http.post("/v1/chat/completions", json=ASK, headers={"traceparent": TRACEPARENT, "tracestate": "a=b"})
        trace_id = response.headers["x-trace-id"]
        await collector.until(PATH, "run direct", "chat m")
        told = (await http.get(f"/v1/runs/{trace_id}")).json()
    assert trace_id != CALLER, "one trace of a caller may hold many runs"
    assert {span.trace_id for span in collector.spans} == {CALLER}
    assert {span.facts["aifactory.trace_id"] for span in collector.spans} == {trace_id}
    assert collector.one(PATH).parent == CALLERS_SPAN
    assert collector.one("run direct").parent == collector.one(PATH).span_id
    assert told["traceparent"] == TRACEPARENT


async def test_a_caller_that_does_not_record_gets_no_spans(collector: Collector) -> None:
    async with serve_gateway() as gateway, gateway.http() as http:
        response = await http.post("/v1/chat/completions", json=ASK, headers={"traceparent": TRACEPARENT[:-1] + "0"})
        assert response.status_code == 200
        other = await http.post("/v1/chat/completions", json={**ASK, "seed": 1})
        await collector.until(PATH)
    assert collector.one(PATH).trace_id == other.headers["x-trace-id"]


@pytest.mark.parametrize("wrong", ["", "00-zz-1-01", TRACEPARENT.upper(), TRACEPARENT + "-x", "a" * 5000])
async def test_a_malformed_traceparent_is_ignored(collector: Collector, wrong: str) -> None:
    async with serve_gateway() as gateway, gateway.http() as http:
        response = await http.post("/v1/chat/completions", json=ASK, headers={"traceparent": wrong})
        trace_id = response.headers["x-trace-id"]
        await collector.until(PATH)
        assert (await http.get(f"/v1/runs/{trace_id}")).json()["traceparent"] is None
    assert (collector.one(PATH).trace_id, collector.one(PATH).parent) == (trace_id, "")


async def test_who_joins_a_run_has_a_trace_that_points_to_it(collector: Collector) -> None:
    replicas = ScriptedReplicas(hold=asyncio.Event())
    async with serve_gateway({"replicas": replicas}) as gateway, gateway.http() as http:
        first = asyncio.ensure_future(http.post("/v1/chat/completions", json=ASK, headers={"traceparent": TRACEPARENT}))
        await until(lambda: replicas.running == 1)
        second = asyncio.ensure_future(http.post("/v1/chat/completions", json=ASK))
        (trace_id,) = gateway.lifecycle.local_runs.leased()
        await until(lambda: gateway.lifecycle.readers.count(trace_id) == 2)
        assert replicas.hold is not None
        replicas.hold.set()
        begun, joined = await first, await second
        await collector.until(PATH, count=2)
        replayed = await http.post("/v1/chat/completions", json=ASK)
        await collector.until(PATH, count=3)
    assert begun.headers["x-trace-id"] == joined.headers["x-trace-id"] == trace_id
    joining = next(span for span in collector.named(PATH) if span.facts["aifactory.cache.result"] == "attached")
    assert joining.links == [(CALLER, Place.of(trace_id, TRACEPARENT).exchange)]
    assert joining.trace_id not in (CALLER, trace_id)
    assert joining.facts["aifactory.trace_id"] == trace_id
    exact = next(span for span in collector.named(PATH) if span.facts["aifactory.cache.result"] == "exact")
    assert exact.trace_id == replayed.headers["x-trace-id"]
    recalled = next(span for span in collector.named("recall exact") if span.trace_id == exact.trace_id)
    assert (recalled.parent, recalled.facts["aifactory.cache.stored_by"]) == (exact.span_id, trace_id)
    assert len(collector.named("run direct")) == 1


async def test_a_failed_run_says_why_by_code(collector: Collector) -> None:
    replicas = ScriptedReplicas(error=UpstreamFailed("the replica died"), break_after=2)
    async with serve_gateway({"replicas": replicas}) as gateway, gateway.http() as http:
        await http.post("/v1/chat/completions", json=ASK)
        await collector.until(PATH, "run direct", "chat m")
        await http.post("/v1/chat/completions", json={**ASK, "stream": True, "seed": 1})
        await collector.until(PATH, "run direct", "chat m", count=2)
        await http.post("/v1/chat/completions", json={**ASK, "model": "unknown"})
        await collector.until(PATH, count=3)
    for name in ("run direct", "chat m"):
        assert [(span.failed, span.facts["error.type"]) for span in collector.named(name)] == [(True, "upstream_failed")] * 2
    whole, streamed, refused = collector.named(PATH)
    assert (whole.failed, whole.facts["error.type"], whole.facts["http.response.status_code"]) == (True, "502", 502)
    assert (streamed.failed, streamed.facts["error.type"], streamed.facts["http.response.status_code"]) == (
        True,
        "upstream_failed",
        200,
    )
    assert (refused.failed, refused.facts["http.response.status_code"]) == (False, 404), "the client's fault is none of ours"


async def test_every_try_at_a_replica_is_a_call(collector: Collector) -> None:
    replicas = ScriptedReplicas(error=UpstreamFailed("not yet"))
    async with serve_gateway({"replicas": replicas}, replica_retries=2, retry_backoff_s=0.01) as gateway, gateway.http() as http:
        trace_id = (await http.post("/v1/chat/completions", json=ASK)).headers["x-trace-id"]
        await collector.until("run direct")
    assert len(collector.named("chat m")) == 3
    assert all(span.failed and span.parent == Place.of(trace_id, None).execution for span in collector.named("chat m"))


async def test_a_cancelled_run_and_a_client_that_left(collector: Collector) -> None:
    replicas = ScriptedReplicas(hold=asyncio.Event())
    async with serve_gateway({"replicas": replicas}) as gateway, gateway.http() as http:
        async with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
            trace_id = response.headers["x-trace-id"]
            await until(lambda: replicas.running == 1)
        await collector.until(PATH, "run direct", "chat m")
    run, call, root = (collector.one(name) for name in ("run direct", "chat m", PATH))
    assert {span.trace_id for span in (run, call, root)} == {trace_id}
    assert (run.failed, run.facts["error.type"], run.facts["aifactory.outcome"]) == (True, "cancelled", "cancelled")
    assert (call.failed, call.facts["error.type"]) == (False, "cut")
    assert call.facts["gen_ai.usage.output_tokens"] == 1
    assert (root.failed, root.facts["error.type"]) == (False, "client_left")


async def test_a_legacy_completion_that_breaks_or_is_left(collector: Collector) -> None:
    asked, path = {"model": "m", "prompt": "x", "stream": True}, "POST /v1/completions"
    replicas = ScriptedReplicas(error=UpstreamFailed("the replica died"))
    async with serve_gateway({"replicas": replicas}) as gateway, gateway.http() as http:
        await http.post("/v1/completions", json=asked)
        await collector.until(path)
        replicas.hold = asyncio.Event()
        async with http.stream("POST", "/v1/completions", json=asked) as response:
            pieces = response.aiter_raw()  # kept: when it goes, so does the stream
            await anext(pieces)
        await collector.until(path, count=2)
        assert replicas.running == 0
        replicas.error = replicas.hold = None
        await http.post("/v1/completions", json=asked)
        await collector.until(path, count=3)
    ends = [(span.failed, span.facts.get("error.type")) for span in collector.named(path)]
    assert ends == [(True, "upstream_failed"), (False, "client_left"), (False, None)]


async def test_a_run_whose_gateway_died_is_ended_in_the_trace_too(collector: Collector) -> None:
    from tests.integration.test_gateway_debates import ASK as DEBATE

    async with serve_gateway(lease_s=0.2, request_timeout_s=0.2) as gateway, gateway.http() as http:
        asked = asyncio.ensure_future(http.post("/v1/chat/completions", json={**DEBATE, "x_timeout_s": 0.2}))
        settings = gateway.lifecycle.settings.model_copy(update={"queue_ack_wait_s": 0.1})
        sweeper = Sweeper(lambda: settings, store=gateway.store, bus=gateway.bus, queue=gateway.queue)
        deadline = time.monotonic() + 30
        while not collector.named("invoke_workflow debate") and time.monotonic() < deadline:
            await sweeper.sweep()
            await asyncio.sleep(0.05)
        trace_id = (await asked).headers["x-trace-id"]
    run = collector.one("invoke_workflow debate")
    assert (run.trace_id, run.failed, run.facts["aifactory.outcome"]) == (trace_id, True, "abandoned")


async def test_a_collector_that_is_away_costs_nothing_and_is_told_of_once(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    listening = logger.add(told.append, format="{message}")
    with collecting() as collector:
        collector.status = 500
        sending = start_tracing(Settings(config="simulated", otlp_endpoint=f"{collector.url}/"), component="gateway")
        assert sending is not None
        try:
            async with serve_gateway() as gateway, gateway.http() as http:
                for number in range(3):
                    answered = await http.post("/v1/chat/completions", json={**ASK, "seed": number})
                    assert answered.status_code == 200
                    await until(partial(was_refused, collector, answered.headers["x-trace-id"]))
                collector.status = 200
                last = await http.post("/v1/chat/completions", json={**ASK, "seed": 99})
                await collector.until(PATH)
            assert {span.trace_id for span in collector.spans} == {last.headers["x-trace-id"]}, "what was refused is lost"
        finally:
            sending.close()
            logger.remove(listening)
    assert len([line for line in told if "the collector of traces takes no spans" in line]) == 1
    assert len([line for line in told if "the collector of traces is back" in line]) == 1
    assert "Failed to export" not in capfd.readouterr().err


async def test_what_waits_is_sent_when_the_process_ends() -> None:
    with collecting() as collector:
        sending = start_tracing(Settings(config="simulated", otlp_endpoint=f"{collector.url}/v1/traces"), component="gateway")
        assert sending is not None
        async with serve_gateway() as gateway, gateway.http() as http:
            await http.post("/v1/chat/completions", json=ASK)
        sending.close()
        assert len(collector.spans) == 5
