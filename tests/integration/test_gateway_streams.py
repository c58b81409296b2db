"""How a stream lasts and ends: which ends are counted as dropped, and when a silent one says that it lives."""

import asyncio
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from serve_app.errors import DeadlineExceeded, UpstreamFailed
from serve_app.events import FinishedEvent, RoleEvent, TokenEvent
from serve_app.gateway import counted_stream, sse
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway, until

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": True}
MOST_DRAFTS = 500


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The (name, reason) of each metric that an ended stream reports. Outside Ray they go nowhere else."""
    seen: list[tuple[str, str]] = []
    for kind in ("count", "observe"):
        monkeypatch.setattr(counted_stream, kind, lambda name, *_, reason="", **__: seen.append((name, reason)))
    return seen


def dropped(counted: list[tuple[str, str]]) -> list[str]:
    return [reason for name, reason in counted if name == "aifactory_streams_dropped_total"]


async def closed(counted: list[tuple[str, str]]) -> None:
    await until(lambda: ("aifactory_sse_seconds", "") in counted)


@pytest.mark.parametrize("error", [UpstreamFailed("the engine died"), DeadlineExceeded("too late")])
async def test_a_run_that_ends_with_an_error_drops_its_stream(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, counted: list[tuple[str, str]], error: Any
) -> None:
    gateway.replicas.error, gateway.replicas.break_after = error, 2
    response = await http.post("/v1/chat/completions", json=ASK)
    assert '"error"' in response.text
    await closed(counted)
    assert dropped(counted) == [error.code]


async def test_a_stream_that_breaks_here_is_dropped_too(
    http: httpx.AsyncClient, counted: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> list[bytes]:
        raise RuntimeError("cannot be rendered")

    monkeypatch.setattr(sse.Renderer, "frames", broken)
    response = await http.post("/v1/chat/completions", json=ASK)
    assert '"internal_error"' in response.text
    await closed(counted)
    assert dropped(counted) == ["internal_error"]


async def test_a_whole_stream_and_a_cancelled_one_are_not_dropped(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, counted: list[tuple[str, str]]
) -> None:
    assert (await http.post("/v1/chat/completions", json=ASK)).text.endswith("data: [DONE]\n\n")
    await closed(counted)
    assert dropped(counted) == []
    counted.clear()
    gateway.replicas.hold = asyncio.Event()
    async with http.stream("POST", "/v1/chat/completions", json={**ASK, "seed": 1}) as response:
        await http.post(f"/v1/runs/{response.headers['x-trace-id']}/cancel")
        text = "".join([part async for part in response.aiter_text()])
    assert '"code":"cancelled"' in text
    await closed(counted)
    assert dropped(counted) == []


async def test_a_client_that_leaves_is_counted_as_that(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, counted: list[tuple[str, str]]
) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with http.stream("POST", "/v1/chat/completions", json=ASK) as response:
        await anext(response.aiter_text())
    await closed(counted)
    assert dropped(counted) == ["client"]


async def test_keepalive_while_all_that_comes_is_hidden() -> None:
    """Drafts that the client does not want are silence to it, and to whatever stands between."""
    async with serve_gateway(keepalive_s=0.2) as gateway, gateway.http() as http:
        body = {**ASK, "x_route": "workflow", "x_debate": {"drafts": False}}
        heard = asyncio.Event()
        async with aclosing(gateway.queue.deliveries(limit=1)) as deliveries, asyncio.TaskGroup() as group:
            reading = group.create_task(_read(http, body, heard))
            delivery = await anext(deliveries)
            publisher = await gateway.bus.open_run(delivery.run.trace_id)
            await publisher.emit(RoleEvent())
            for _ in range(MOST_DRAFTS):
                if heard.is_set():
                    break
                await publisher.emit(TokenEvent(text="draft", task="A"))
                await asyncio.sleep(0.02)  # the pace of a debater
            await publisher.emit(TokenEvent(text="the answer"))
            await publisher.emit(FinishedEvent(reason="stop"))
            await delivery.done()
        text = reading.result()
    assert heard.is_set(), "nothing was written for much longer than keepalive_s"
    assert "draft" not in text
    assert '"content":"the answer"' in text
    assert text.endswith("data: [DONE]\n\n")


async def _read(http: httpx.AsyncClient, body: dict[str, Any], heard: asyncio.Event) -> str:
    """The whole stream; `heard` is set by a keep-alive behind the role."""
    text = ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for part in response.aiter_text():
            text += part
            if ": keep-alive" in text.partition('"role"')[2]:
                heard.set()
    return text


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": True}, {"x_route": "workflow"}])
async def test_only_from_a_cache_that_is_off_is_a_miss(fields: dict[str, Any]) -> None:
    async with serve_gateway(cache_enabled=False) as gateway, gateway.http() as http:
        assert (await http.post("/v1/chat/completions", json=ASK)).headers["x-cache"] == "bypass"
        missed = await http.post("/v1/chat/completions", json={**ASK, "x_cache": {"mode": "only"}, **fields})
        assert (missed.status_code, missed.json()["error"]["code"]) == (404, "cache_miss")
        assert gateway.replicas.calls == 1
