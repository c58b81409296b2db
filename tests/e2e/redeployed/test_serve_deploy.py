"""`serve deploy` with the file that `aifactory up` writes, and changes of knobs by user_config that restart nothing."""

import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.promtail_files import promtail_reads
from tests.e2e.redeployed.deployed import START_S, Deployed
from tests.e2e.stack_under_test import RunningStack, until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def deployed(files: Deployed) -> Deployed:
    """Both applications run from the file, with the knobs as `up` wrote them."""
    await files.deploy()
    return files


async def ask(stack: RunningStack, text: str = "hello", **fields: Any) -> httpx.Response:
    async with stack.http() as http:
        body = {"model": "sim-small", "messages": [{"role": "user", "content": text}], **fields}
        return await http.post("/v1/chat/completions", json=body)


async def test_adapters_are_models_to_a_client(stack: RunningStack) -> None:
    async with stack.http() as http:
        listed = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
        assert {"sim-small", "sim-small:law", "sim-large"} <= set(listed)
        assert listed["sim-small:law"]["parent"] == "sim-small"
        assert (await http.get("/v1/models/sim-small:law")).status_code == 200

    by_id = await ask(stack, "who may park here?", model="sim-small:law")
    by_field = await ask(stack, "who may park here?", x_adapter="law")
    base = await ask(stack, "who may park here?")
    assert [answer.status_code for answer in (by_id, by_field, base)] == [200] * 3
    assert [answer.headers["x-cache"] for answer in (by_id, by_field, base)] == ["miss", "exact", "miss"]
    assert (await ask(stack, model="sim-large:whatever")).status_code == 200  # only a replica could tell

    for wrong in ({"model": "sim-small:nope"}, {"x_adapter": "nope"}, {"model": "sim-small:../law"}, {"x_adapter": ".."}):
        refused = await ask(stack, **wrong)
        assert refused.status_code == 404, refused.text
        error = refused.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
        assert "sim-small:law" in error["message"]


async def test_the_file_deploys_and_its_knobs_change_without_a_restart(stack: RunningStack, deployed: Deployed) -> None:
    assert deployed.file.stat().st_mode & 0o077 == 0
    for secret in ("postgresql://", "nats://"):
        assert secret not in deployed.text

    assert (await ask(stack)).status_code == 200
    assert (await ask(stack, model="debate")).status_code == 200

    running, long = deployed.replicas(), "word " * 1000
    assert (await ask(stack, long)).status_code == 200
    (gateway,) = yaml.safe_load(deployed.text)["applications"][0]["deployments"]
    deployed.set_knobs(gateway["user_config"] | {"max_body_bytes": 2000, "cache_enabled": False})

    async def refused() -> bool:
        return (await ask(stack, long)).status_code == 413

    await until(refused, START_S, "the new limit of a body")
    for _ in range(2):
        assert (await ask(stack, "never cached now")).headers["x-cache"] == "bypass"
    await until(deployed.runs, START_S, "the applications")
    assert deployed.replicas() == running


async def test_a_wrong_knob_ends_no_gateway_and_a_knob_left_out_is_as_before(stack: RunningStack, deployed: Deployed) -> None:
    running, question = deployed.replicas(), f"{time.time_ns()}"

    async def cached() -> bool:
        answers = [await ask(stack, question) for _ in range(2)]
        assert {answer.status_code for answer in answers} == {200}
        return answers[1].headers["x-cache"] == "exact"

    async def set_and_wait(knobs: dict[str, Any], works: bool) -> None:
        deployed.set_knobs(knobs)
        await until(partial(_has_value, cached, works), START_S, f"cache: {works}")

    await set_and_wait({"cache_enabled": False}, False)
    await set_and_wait({}, True)
    deployed.set_knobs({"bus": "core", "cache_enabled": False})
    await until(partial(_refused, stack, "bus"), START_S, "the refusal in the logs of gateway and worker")
    assert await cached()
    await set_and_wait({"cache_enabled": False}, False)
    await until(deployed.runs, START_S, "the applications")
    assert deployed.replicas() == running


async def _has_value(condition: Callable[[], Awaitable[bool]], value: bool) -> bool:
    return await condition() is value


def _refused(stack: RunningStack, knob: str) -> bool:
    lines = [json.loads(line) for line in promtail_reads(stack, "aifactory") if line.startswith("{")]
    told = [line for line in lines if "live settings refused" in line["message"] and repr(knob) in line["message"]]
    return {line.get("component") for line in told} == {"gateway", "worker"}
