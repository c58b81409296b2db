"""Spans that leave a whole stack: gateway and worker are processes of their own, and a collector sees one tree."""

from pathlib import Path

import pytest

from serve_app.spans import Place
from tests.e2e.stack_under_test import run_command, running_stack
from tests.integration.trace_collector import collecting

pytestmark = pytest.mark.timeout(900)

PATH, DEBATE = "POST /v1/chat/completions", "invoke_workflow debate"
CALLER, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_gateway_and_worker_send_one_tree_and_all_of_it_before_they_end() -> None:
    question = {"model": "debate", "messages": [{"role": "user", "content": "Xanadu?"}], "x_cache": {"mode": "bypass"}}
    with collecting() as collector:
        with running_stack("simulated", otlp_endpoint=collector.url) as stack:
            async with stack.http() as http:
                joining = {"traceparent": f"00-{CALLER}-{CALLERS_SPAN}-01"}
                debate = await http.post("/v1/chat/completions", json=question, headers=joining)
                await collector.until(PATH, DEBATE)
                direct = await http.post("/v1/chat/completions", json={**question, "model": "sim-small"})
            assert (debate.status_code, direct.status_code) == (200, 200)
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


def test_a_wrong_address_ends_the_start_with_one_line(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "AIFACTORY_STATE_DIR": str(tmp_path), "AIFACTORY_OTLP_ENDPOINT": "collector:4318"}
    up = run_command(env, "up", "--no-demo", "--config", "simulated")
    assert up.returncode != 0
    assert "otlp_endpoint 'collector:4318' is no address of a collector" in " ".join((up.stdout + up.stderr).split())
    assert "Traceback" not in up.stderr
