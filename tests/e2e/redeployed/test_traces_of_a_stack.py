"""Spans that leave a whole stack: gateway and worker are processes of their own, and a collector sees one tree."""

import asyncio
from pathlib import Path

import pytest

from serve_app.spans import Place
from tests.e2e.redeployed.deployed import Deployed
from tests.e2e.stack_under_test import RunningStack, run_command
from tests.integration.trace_collector import CALLER, CALLERS_SPAN, DEBATE, PATH, TRACEPARENT, Collector

pytestmark = pytest.mark.timeout(900)


def test_a_wrong_address_ends_the_start_with_one_line(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "AIFACTORY_STATE_DIR": str(tmp_path), "AIFACTORY_OTLP_ENDPOINT": "collector:4318"}
    up = run_command(env, "up", "--no-demo", "--config", "simulated")
    assert up.returncode != 0
    assert "otlp_endpoint 'collector:4318' is no address of a collector" in " ".join((up.stdout + up.stderr).split())
    assert "Traceback" not in up.stderr


async def test_gateway_and_worker_send_one_tree_and_all_of_it_before_they_end(
    stack: RunningStack, files: Deployed, collector: Collector
) -> None:
    """It ends the stack: no test here comes after it."""
    question = {"model": "debate", "messages": [{"role": "user", "content": "Xanadu?"}], "x_cache": {"mode": "bypass"}}
    joining = {"traceparent": TRACEPARENT}
    await files.deploy(debate_launch="warm")
    collector.spans.clear()
    async with stack.http() as http:
        debate = await http.post("/v1/chat/completions", json=question, headers=joining)
        await collector.until(PATH, DEBATE)
        direct = await http.post("/v1/chat/completions", json={**question, "model": "sim-small"})
    assert (debate.status_code, direct.status_code) == (200, 200)
    down = await asyncio.to_thread(stack.command, "down", timeout_s=240)
    assert down.returncode == 0, down.stderr
    # The last spans had no second to gather: they were sent when the gateway ended.
    spans = collector.of(direct.headers["x-trace-id"])
    assert sorted(span.name for span in spans) == [PATH, "chat sim-small", "run direct"]

    trace_id = debate.headers["x-trace-id"]
    tree = collector.of(CALLER)
    assert {span.facts["aifactory.trace_id"] for span in tree} == {trace_id}
    of_gateway = {span.name for span in tree if span.service == "aifactory-gateway"}
    of_worker = {span.name.partition(" ")[0] for span in tree if span.service == "aifactory-worker"}
    assert (of_gateway, of_worker) == ({PATH}, {"wait", "chat", "invoke_workflow"})
    place = Place.of(trace_id, joining["traceparent"])
    (run,) = (span for span in tree if span.name == DEBATE)
    assert (run.span_id, run.parent) == (place.execution, place.exchange)
    assert next(span for span in tree if span.name == PATH).parent == CALLERS_SPAN
    calls = [span for span in tree if span.name.startswith("chat ")]
    assert {str(span.facts["aifactory.debate.role"]) for span in calls} == {"debater", "judge"}
    assert {span.parent for span in calls} == {run.span_id}
    assert not any(b"Xanadu" in raw for raw in collector.raw)
