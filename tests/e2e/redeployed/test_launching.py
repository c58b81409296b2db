"""Debates in processes of their own on a whole stack: as Ray jobs, and started by a command as systemd would be.

The real entrypoint, `python -m dagster_project.entrypoints.run_debate`, joins the cluster and asks its replicas.
"""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.dagster_page import BY_RAY, ended, launch_maintenance
from tests.e2e.nats_tap import tapped
from tests.e2e.redeployed.deployed import Deployed
from tests.e2e.stack_under_test import RunningStack, until

pytestmark = pytest.mark.timeout(900)

# Returns at once, as `systemctl start --no-block` does.
START = (
    'TRACE_ID="$0" AIFACTORY_STATE_DIR="$1" setsid "$2" -m dagster_project.entrypoints.run_debate </dev/null >"$1/$0.log" 2>&1 &'
)
WAYS: dict[str, dict[str, Any]] = {
    "ray": {},  # as the stack was started
    "systemd": {
        "debate_launch": "systemd",
        "debate_command": ["/bin/sh", "-c", START, "{trace_id}", "{state_dir}", sys.executable],
    },
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
async def launched(way: str, files: Deployed) -> None:
    """The worker launches debates this way."""
    if files.worker != WAYS[way]:
        await files.deploy(**WAYS[way])


def debate(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "debate", "messages": [{"role": "user", "content": f"{text} {time.time_ns()}"}], **fields}


async def test_a_debate_has_a_process_of_its_own_and_looks_like_any_other(stack: RunningStack, way: str) -> None:
    async with tapped(stack.info["nats"]) as tap, stack.http() as http:
        answer = await http.post("/v1/chat/completions", json=debate("hello"))
        assert answer.status_code == 200, answer.text
        trace_id = answer.headers["x-trace-id"]
        events = await tap.whole_run(trace_id)
        run = (await http.get(f"/v1/runs/{trace_id}")).json()
    assert events[-1]["type"] == "finished"
    assert {event["task"] for event in events if event["type"] == "token" and "task" in event} == {"A", "B", "C"}
    recorded = await ended(stack, run["dagster_run_id"], within_s=60)
    assert recorded["status"] == "SUCCESS"
    assert {"key": "trace_id", "value": trace_id} in recorded["tags"]
    if way == "ray":
        assert BY_RAY in recorded["tags"]
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


@pytest.mark.parametrize("way", ["ray"], indirect=True, scope="module")
async def test_another_job_that_is_launched_from_the_page_is_a_ray_job(stack: RunningStack) -> None:
    """With heavy_jobs: ray. tests/e2e/test_own_servers.py launches one beside the page."""
    run = await launch_maintenance(stack)
    assert run["status"] == "SUCCESS"
    assert BY_RAY in run["tags"]
