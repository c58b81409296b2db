"""A debate as a collector of traces sees it: the spans of gateway and worker are one tree, though neither told the other."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from dagster import DagsterInstance

from serve_app.bus.memory import InMemoryRunQueue
from serve_app.bus.run_json import decode_run, encode_run
from serve_app.errors import UpstreamFailed
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.spans import Place
from tests.integration.dagster_stand import Script, ScriptedReplicas, Stand
from tests.integration.gateway_server import serve_gateway
from tests.integration.trace_collector import CALLER, CALLERS_SPAN, DEBATE, PATH, TRACEPARENT, Collector, Seen, collecting_from

JOINING = {"traceparent": TRACEPARENT}


class QueueOnTheWire(InMemoryRunQueue):
    """Hands over what a message of NATS would hold."""

    async def submit(self, run: Run) -> None:
        await super().submit(decode_run(encode_run(run)))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting_from("worker", monkeypatch) as collector:
        yield collector


@asynccontextmanager
async def debating(settings: Settings, instance: DagsterInstance, **scripts: Script) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with a worker behind it."""
    stand = Stand(settings, instance, ScriptedReplicas(**scripts))
    stand.queue = QueueOnTheWire(ack_wait_s=5)
    async with stand.working() as pulls:
        parts = {"store": stand.store, "bus": stand.bus, "queue": stand.queue}
        async with (
            serve_gateway(parts) as gateway,
            gateway.http() as http,
        ):
            yield http
            await stand.until_quiet(pulls)


def asked(**debate: Any) -> dict[str, Any]:
    tasks = [{"task": label, "model": "m"} for label in "AB"]
    return {
        "model": "m",
        "x_route": "workflow",
        "messages": [{"role": "user", "content": "What is the capital of Xanadu?"}],
        "x_debate": {"tasks": tasks, "rounds": 1, "judge_model": "m", **debate},
    }


def calls(collector: Collector) -> list[Seen]:
    return sorted(collector.named("chat m"), key=lambda span: str(span.facts["aifactory.call"]))


async def test_gateway_and_worker_make_one_tree(collector: Collector, settings: Settings, instance: DagsterInstance) -> None:
    async with debating(settings, instance, A=Script(("Lyon",)), B=Script(("Pa", "ris")), judge=Script(names="Paris")) as http:
        response = await http.post("/v1/chat/completions", json=asked())
        trace_id = response.headers["x-trace-id"]
        await collector.until(PATH, DEBATE)
        told = (await http.get(f"/v1/runs/{trace_id}")).json()

    assert {span.trace_id for span in collector.spans} == {trace_id}
    root, debate, wait = (collector.one(name) for name in (PATH, DEBATE, "wait for worker"))
    assert (root.parent, debate.parent, wait.parent) == ("", root.span_id, debate.span_id)
    assert [span.facts["aifactory.call"] for span in calls(collector)] == ["A", "B", "judge-1", "judge-2"]
    for span in calls(collector):
        assert span.parent == debate.span_id
        assert span.facts["aifactory.dagster_run_id"] == told["dagster_run_id"]
        assert debate.start <= wait.end <= span.start <= span.end <= debate.end
    debaters = [(span.facts["aifactory.task"], span.facts["aifactory.round"]) for span in calls(collector)[:2]]
    assert debaters == [("A", 1), ("B", 1)]
    assert [span.facts["aifactory.debate.role"] for span in calls(collector)] == ["debater", "debater", "judge", "judge"]
    assert calls(collector)[1].facts["gen_ai.usage.output_tokens"] == 2
    wanted = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "debate",
        "aifactory.outcome": "succeeded",
        "aifactory.debate.strategy": "judge",
        "aifactory.debate.winner": "B",
        "aifactory.dagster_run_id": told["dagster_run_id"],
        "aifactory.usage.output_tokens": told["usage"]["completion_tokens"],
    }
    assert wanted.items() <= debate.facts.items()
    assert not any(span.failed for span in collector.spans)
    assert not any(text in raw for raw in collector.raw for text in (b"Xanadu", b"Paris", b"Lyon"))


async def test_rounds_a_writer_and_a_retry_in_the_callers_trace(
    collector: Collector, settings: Settings, instance: DagsterInstance
) -> None:
    scripts = {
        "A": Script(("Lyon",), errors=[UpstreamFailed("Xanadu fell")]),
        "B": Script(("Paris",)),
        "writer": Script(("Both",)),
    }
    async with debating(settings, instance, **scripts) as http:
        body = asked(rounds=2, strategy="synthesize")
        response = await http.post("/v1/chat/completions", json=body, headers=JOINING)
        trace_id = response.headers["x-trace-id"]
        await collector.until(PATH, DEBATE)
        assert (await http.get(f"/v1/runs/{trace_id}")).json()["traceparent"] == JOINING["traceparent"]

    assert {span.trace_id for span in collector.spans} == {CALLER}
    assert {span.facts["aifactory.trace_id"] for span in collector.spans} == {trace_id}
    assert collector.one(PATH).parent == CALLERS_SPAN
    debate = collector.one(DEBATE)
    assert debate.span_id == Place.of(trace_id, None).execution
    assert {span.parent for span in calls(collector)} == {debate.span_id}
    seen = [(span.facts["aifactory.call"], span.facts.get("aifactory.round"), span.failed) for span in calls(collector)]
    assert seen == [
        ("A", 1, True),
        ("A-1", 1, False),
        ("A-r2", 2, False),
        ("B", 1, False),
        ("B-r2", 2, False),
        ("writer", None, False),
    ]
    assert calls(collector)[0].facts["error.type"] == "upstream_failed"
    assert (debate.facts["aifactory.debate.rounds"], debate.facts["aifactory.debate.stop_reason"]) == (2, "synthesized")
    assert not any(b"Xanadu" in raw for raw in collector.raw)


async def test_a_cancelled_debate(collector: Collector, settings: Settings, instance: DagsterInstance) -> None:
    async with debating(settings, instance, A=Script(hangs=True), B=Script(hangs=True)) as http:
        async with http.stream("POST", "/v1/chat/completions", json={**asked(), "stream": True}) as response:
            trace_id = response.headers["x-trace-id"]
            spoken: set[str] = set()
            async for line in response.aiter_lines():
                spoken |= {label for label in "AB" if f'"x_task":"{label}"' in line} - spoken
                if spoken == {"A", "B"}:
                    spoken.clear()
                    await http.post(f"/v1/runs/{trace_id}/cancel")
        await collector.until(PATH, DEBATE)
        await collector.until("chat m", count=2)
    debate, root = collector.one(DEBATE), collector.one(PATH)
    assert (debate.failed, debate.facts["error.type"], debate.facts["aifactory.outcome"]) == (True, "cancelled", "cancelled")
    assert [(span.failed, span.facts["error.type"]) for span in calls(collector)] == [(False, "cut")] * 2
    assert (root.failed, root.facts["error.type"]) == (True, "cancelled")
    assert {span.trace_id for span in collector.spans} == {trace_id}
