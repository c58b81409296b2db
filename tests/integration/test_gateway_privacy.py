"""No page of another origin gets in, and no prompt, answer or key gets into a log line, whatever happens to a request."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from loguru import logger

from serve_app.errors import UpstreamFailed
from tests.integration.gateway_server import KEY, GatewayUnderTest, ScriptedReplicas, serve_gateway, until

SECRET = "the-prompt-nobody-may-read"
SAID = "the-answer-nobody-may-read"
CHAT = "/v1/chat/completions"


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway({"replicas": ScriptedReplicas(words=[SAID, " ", SAID])}, max_body_bytes=100_000) as server:
        yield server


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Everything that is logged, of any level, with its fields and tracebacks."""
    seen: list[str] = []
    sink = logger.add(
        lambda message: seen.append(str(message) + json.dumps(message.record["extra"], default=str)),
        level=0,
        backtrace=False,
        diagnose=False,  # as configure_logging has it
    )
    yield seen
    logger.remove(sink)


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/healthz", "/v1/nope"])
async def test_cors_is_off(http: httpx.AsyncClient, path: str) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answers = [
        await http.options(path, headers=asked),
        await http.get(path, headers=origin),
        await http.post(path, headers=origin, json={"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    ]
    assert answers[0].status_code >= 400  # a browser needs a 2xx to go on
    for answer in answers:
        assert [name for name in answer.headers if name.startswith("access-control-")] == []


async def test_prompts_answers_and_keys_stay_out_of_the_log(
    gateway: GatewayUnderTest, http: httpx.AsyncClient, lines: list[str]
) -> None:
    ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
    for body, status in (
        (ask, 200),
        (ask, 200),  # from the cache
        ({**ask, "stream": True, "x_cache": {"mode": "bypass"}}, 200),
        ({**ask, "temperature": SECRET}, 400),
        ({**ask, "x_debate": {SECRET: 1}}, 400),
        ({**ask, "messages": [{"role": SECRET, "content": SECRET}]}, 400),
        ({**ask, "model": SECRET}, 404),
        ({**ask, "x_project": SECRET}, 403),
    ):
        assert (await http.post(CHAT, json=body)).status_code == status
    assert (await http.post(CHAT, content=f'{{"messages": [{SECRET}')).status_code == 400
    assert (await http.post("/v1/completions", json={"model": "m", "prompt": SECRET})).status_code == 200
    assert (await http.post("/v1/embeddings", json={"model": "hash", "input": SECRET})).status_code == 200
    document = await http.post("/v1/documents", json={"name": "note", "text": SECRET})
    assert document.status_code in (200, 202)
    wrong = await http.get("/v1/models", headers={"Authorization": f"Bearer aif-{SECRET}"})
    assert wrong.status_code == 401
    await _broken(gateway, http, ask)
    assert len(lines) > 15
    assert [line for line in lines if SECRET in line or SAID in line or KEY in line] == []


async def _broken(gateway: GatewayUnderTest, http: httpx.AsyncClient, ask: dict[str, Any]) -> None:
    """A client that leaves, a replica that fails, and a bug in the middle of a run."""
    bypass = {**ask, "x_cache": {"mode": "bypass"}}
    gateway.replicas.hold = asyncio.Event()
    async with http.stream("POST", CHAT, json={**bypass, "stream": True}) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
    await until(lambda: gateway.replicas.running == 0)
    gateway.replicas.hold, gateway.replicas.error, gateway.replicas.break_after = None, UpstreamFailed("broke"), 1
    assert (await http.post(CHAT, json=bypass)).status_code == 502
    gateway.replicas.break_after, gateway.replicas.error = None, None
    gateway.replicas.words = None  # type: ignore[assignment]  # iterating over it is the bug
    assert (await http.post(CHAT, json=bypass)).status_code == 500
