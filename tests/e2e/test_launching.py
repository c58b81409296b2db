"""Debates in processes of their own on a whole stack: as Ray jobs, and started by a command as systemd would be.

The real entrypoint, `python -m dagster_project.entrypoints.run_debate`, joins the cluster and asks its replicas.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.nats_tap import tapped
from tests.e2e.stack_under_test import RunningStack, running_stack, until

pytestmark = pytest.mark.timeout(900)

# Returns at once, as `systemctl start --no-block` does.
START = (
    'TRACE_ID="$0" AIFACTORY_STATE_DIR="$1" setsid "$2" -m dagster_project.entrypoints.run_debate </dev/null >"$1/$0.log" 2>&1 &'
)
WAYS = {
    "ray": {"debate_launch": "ray", "heavy_jobs": "ray"},
    "systemd": {
        "debate_launch": "systemd",
        "debate_command": json.dumps(["/bin/sh", "-c", START, "{trace_id}", "{state_dir}", sys.executable]),
    },
}
BY_RAY = {"key": "launched_by", "value": "ray"}
RUN = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status tags { key value } } } }"
LAUNCH = """mutation { launchRun(executionParams: {mode: "default", selector:
  {repositoryLocationName: "aifactory", repositoryName: "__repository__", jobName: "sweep"}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


@pytest.fixture(scope="module", params=["ray", "systemd"])
def stack(request: pytest.FixtureRequest) -> Iterator[RunningStack]:
    with running_stack("simulated", **WAYS[request.param]) as running:
        yield running


def debate(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "debate", "messages": [{"role": "user", "content": f"{text} {time.time_ns()}"}], **fields}


async def in_dagster(stack: RunningStack, query: str, **variables: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=stack.info["dagster"], timeout=60, trust_env=False) as http:
        told = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    assert "errors" not in told, told["errors"]
    [result] = told["data"].values()
    assert isinstance(result, dict)
    return result


async def test_a_debate_has_a_process_of_its_own_and_looks_like_any_other(stack: RunningStack) -> None:
    async with tapped(stack.info["nats"]) as tap, stack.http() as http:
        answer = await http.post("/v1/chat/completions", json=debate("hello"))
        assert answer.status_code == 200, answer.text
        trace_id = answer.headers["x-trace-id"]
        events = await tap.whole_run(trace_id)
        run = (await http.get(f"/v1/runs/{trace_id}")).json()
    assert events[-1]["type"] == "finished"
    assert {event["task"] for event in events if event["type"] == "token" and "task" in event} == {"A", "B", "C"}
    shown = await in_dagster(stack, RUN, run=run["dagster_run_id"])
    assert shown["status"] == "SUCCESS"
    assert {"key": "trace_id", "value": trace_id} in shown["tags"]
    if stack.env["AIFACTORY_DEBATE_LAUNCH"] == "ray":
        assert BY_RAY in shown["tags"]
    else:
        assert "debate planned" in (Path(stack.info["state_dir"]) / f"{trace_id}.log").read_text()


async def test_it_hears_cancels_and_leaves_the_engines_idle(stack: RunningStack) -> None:
    body = debate("long", max_tokens=4000, stream=True)
    async with (
        tapped(stack.info["nats"]) as tap,
        stack.http() as http,
        http.stream("POST", "/v1/chat/completions", json=body) as it,
    ):
        trace_id = it.headers["x-trace-id"]
        await until(lambda: any(e["type"] == "token" for e in tap.events.get(trace_id, ())), 120, "a first token")
        assert (await http.post(f"/v1/runs/{trace_id}/cancel")).status_code < 300
        events = await tap.whole_run(trace_id, timeout_s=30)
    assert events[-1]["reason"] == "cancelled"
    await stack.engines_idle(within_s=20)


async def test_another_job_is_launched_from_the_page(stack: RunningStack) -> None:
    """Beside the web page, or with heavy_jobs: ray as a Ray job."""
    told = await in_dagster(stack, LAUNCH)
    assert told["__typename"] == "LaunchRunSuccess", told
    run_id = told["run"]["runId"]

    async def over() -> bool:
        return (await in_dagster(stack, RUN, run=run_id))["status"] in ("SUCCESS", "FAILURE", "CANCELED")

    await until(over, 300, "the job's end")
    shown = await in_dagster(stack, RUN, run=run_id)
    assert shown["status"] == "SUCCESS"
    assert (BY_RAY in shown["tags"]) is (stack.env.get("AIFACTORY_HEAVY_JOBS") == "ray")
