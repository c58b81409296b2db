"""Runs by name: what is told of one, and that another project's runs cannot be seen, read or stopped."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.integration.gateway_server import GatewayUnderTest, OneKey, _Owner, ask, serve_gateway, until

THEIRS = "aif-another-key"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


class TwoKeys(OneKey):
    """Also knows a key of project r, which nobody else may act for."""

    async def check(self, key: str) -> _Owner | None:
        return _Owner("r") if key == THEIRS else await super().check(key)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway(keys=TwoKeys()) as served:
        yield served


@pytest.fixture
async def others(gateway: GatewayUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key of project r."""
    async with gateway.http(THEIRS) as client:
        yield client


async def test_a_run_of_another_project_does_not_exist(
    http: httpx.AsyncClient, others: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with others.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
        path = f"/v1/runs/{response.headers['x-trace-id']}"
        for method, place in (("GET", path), ("GET", f"{path}/events"), ("POST", f"{path}/cancel")):
            refused = await http.request(method, place)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "run_not_found"), place
        assert (await others.get(path)).json()["status"] == "running", "nobody has stopped it"
        gateway.replicas.hold.set()
        text = "".join([part async for part in response.aiter_text()])
    assert text.endswith("data: [DONE]\n\n")
    assert (await http.get(path)).status_code == 404
    assert (await others.get(path)).json()["project"] == "r"


async def test_a_key_sees_the_runs_of_every_project_that_it_may_act_for(http: httpx.AsyncClient) -> None:
    for project in ("p", "q"):
        answer = await ask(http, "hello", x_project=project)
        run = await http.get(f"/v1/runs/{answer.headers['x-trace-id']}")
        assert (run.status_code, run.json()["project"]) == (200, project)


async def test_a_run_tells_when_it_began_and_when_it_ended(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
        path = f"/v1/runs/{response.headers['x-trace-id']}"
        running = (await http.get(path)).json()
        assert running["timings"] == {"created_at": running["created_at"], "finished_at": None, "seconds": None}
        gateway.replicas.hold.set()
        await response.aread()
    await until(lambda: gateway.replicas.running == 0)
    ended = (await http.get(path)).json()
    timings = ended["timings"]
    assert ended["status"] == "succeeded"
    assert timings["created_at"] == running["created_at"]
    assert timings["finished_at"] == ended["updated_at"] > timings["created_at"]
    assert timings["seconds"] == pytest.approx(timings["finished_at"] - timings["created_at"])
