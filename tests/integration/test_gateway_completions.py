"""Legacy completions: kept alive while the engine is silent, cut honestly, seen by an operator, and no way around the queue."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from serve_app import telemetry
from serve_app.errors import Overloaded, UpstreamFailed
from serve_app.telemetry import logger
from tests.integration.gateway_server import KEY, GatewayUnderTest, ScriptedReplicas, serve_gateway, until

PATH = "/v1/completions"
ASK: dict[str, Any] = {"model": "m", "prompt": "The capital of France is", "stream": True}
CHUNK = {"choices": [{"index": 0, "text": "Paris", "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "text": ".", "finish_reason": "stop"}]}


@dataclass
class SlowReplicas(ScriptedReplicas):
    """Also waits for `begin` before the first chunk, and breaks before it with `early`."""

    begin: asyncio.Event = field(default_factory=asyncio.Event)
    early: BaseException | None = None

    async def completions(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.bodies.append(body)
        self.running += 1
        try:
            await self.begin.wait()
            if self.early is not None:
                raise self.early
            async for chunk in super().completions(model, adapter, body, request_id=request_id):
                yield chunk
        finally:
            self.running -= 1


@dataclass
class Metrics:
    """What was counted and observed: name and tags of each."""

    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def __call__(self, name: str) -> "_Metric":
        return _Metric(name, self)


@dataclass
class _Metric:
    name: str
    metrics: Metrics

    def observe(self, _: float, *, tags: dict[str, str]) -> None:
        self.metrics.seen.append((self.name, tags))

    inc = observe


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """The metrics of this process, as Ray would get them."""
    made = Metrics()
    monkeypatch.setattr(telemetry, "_in_ray", lambda: True)
    monkeypatch.setattr(telemetry, "_metric", made)
    return made


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    replicas = SlowReplicas(completion=[CHUNK, LAST])
    async with serve_gateway({"replicas": replicas}, keepalive_s=0.05) as served:
        yield served


@pytest.fixture
def replicas(gateway: GatewayUnderTest) -> SlowReplicas:
    assert isinstance(gateway.replicas, SlowReplicas)
    return gateway.replicas


async def test_a_silent_engine_is_no_silent_stream_before_the_first_chunk_and_between(
    http: httpx.AsyncClient, replicas: SlowReplicas
) -> None:
    replicas.hold = asyncio.Event()
    async with http.stream("POST", PATH, json=ASK) as response:
        assert response.headers["x-accel-buffering"] == "no"
        assert len(response.headers["x-trace-id"]) == 32
        text = ""
        async for part in response.aiter_text():
            text += part
            before, _, after = text.partition("data: ")
            if before.count(": keep-alive\n") >= 2:
                replicas.begin.set()
            if after.count(": keep-alive\n") >= 2:
                replicas.hold.set()
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("data: {") == 2


async def test_the_openai_client_reads_on_over_keepalives(gateway: GatewayUnderTest, replicas: SlowReplicas) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as sdk:
        stream = await sdk.completions.create(**ASK)  # open, though there is no chunk yet
        replicas.begin.set()
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Paris."


async def test_an_early_error_has_its_own_status() -> None:
    replicas = SlowReplicas(early=Overloaded("full", retry_after_s=3))
    replicas.begin.set()
    async with serve_gateway({"replicas": replicas}) as gateway, gateway.http() as http:
        refused = await http.post(PATH, json=ASK)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
        replicas.early = RuntimeError("a fault of ours")
        broken = await http.post(PATH, json=ASK)
        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "internal_error")
        assert len(broken.headers["x-trace-id"]) == 32
    assert replicas.running == 0


@pytest.mark.parametrize("late", [False, True])
async def test_an_error_in_an_open_stream_is_told_and_never_looks_whole(
    http: httpx.AsyncClient, replicas: SlowReplicas, metrics: Metrics, late: bool
) -> None:
    """`late`: after a chunk; else the stream is open, and nothing has come."""
    fault = UpstreamFailed("the replica died")
    if late:
        replicas.error = fault
    else:
        replicas.early = fault
    async with http.stream("POST", PATH, json=ASK) as response:
        assert response.status_code == 200
        replicas.begin.set()
        text = await _rest(response)
    assert text.count("data: ") == (3 if late else 1)
    assert text.endswith("}}\n\n")
    assert '{"error":{"message":"the replica died"' in text
    assert "[DONE]" not in text
    await until(lambda: "aifactory_sse_seconds" in metrics.names())
    dropped = ("aifactory_streams_dropped_total", {"route": "direct", "reason": "upstream_failed"})
    assert metrics.seen.count(dropped) == 1


async def test_a_deadline_that_passes_in_silence_ends_the_stream_with_an_error(
    http: httpx.AsyncClient, replicas: SlowReplicas
) -> None:
    response = await http.post(PATH, json={**ASK, "x_timeout_s": 0.3})
    assert response.status_code == 200
    assert ": keep-alive\n" in response.text
    assert '"code":"deadline_exceeded"' in response.text
    assert "[DONE]" not in response.text
    assert replicas.running == 0


async def test_a_client_that_leaves_before_the_first_chunk_stops_the_engine(
    http: httpx.AsyncClient, replicas: SlowReplicas, metrics: Metrics
) -> None:
    async with http.stream("POST", PATH, json=ASK) as response:
        pieces = response.aiter_raw()  # kept: when it goes, so does the stream
        await anext(pieces)
        assert replicas.running == 1
    await until(lambda: replicas.running == 0)
    await until(lambda: ("aifactory_streams_dropped_total", {"route": "direct", "reason": "client"}) in metrics.seen)
    assert "aifactory_time_to_first_token_seconds" not in metrics.names()


async def test_a_stream_is_in_the_metrics_of_streams(http: httpx.AsyncClient, replicas: SlowReplicas, metrics: Metrics) -> None:
    replicas.begin.set()
    await http.post(PATH, json=ASK)
    await until(lambda: "aifactory_requests_total" in metrics.names())
    seen = [entry for entry in metrics.seen if entry[0] != "aifactory_requests_total"]
    assert sorted(seen) == [
        ("aifactory_sse_seconds", {"route": "direct"}),
        ("aifactory_time_to_first_token_seconds", {"route": "direct"}),
    ]


async def test_what_breaks_is_logged_under_the_id_that_the_client_has(http: httpx.AsyncClient, replicas: SlowReplicas) -> None:
    replicas.begin.set()
    replicas.error = RuntimeError("a fault of ours")  # type: ignore[assignment]  # what no part should raise
    lines: list[dict[str, Any]] = []
    sink = logger.add(lambda message: lines.append(dict(message.record)), level="ERROR")
    try:
        response = await http.post(PATH, json=ASK, headers={"x-request-id": "mine"})
    finally:
        logger.remove(sink)
    assert '"code":"internal_error"' in response.text
    assert "a fault of ours" not in response.text
    assert "[DONE]" not in response.text
    found = [line["extra"] for line in lines if line["message"] == "completion broke"]
    assert [(extra["trace_id"], extra["request_id"]) for extra in found] == [(response.headers["x-trace-id"], "mine")]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_is_told_no_more_than_in_a_chat(http: httpx.AsyncClient, replicas: SlowReplicas, stream: bool) -> None:
    replicas.begin.set()
    hints = {"priority": -100, "request_id": "theirs", "user": "u", "metadata": {"a": "b"}, "x_timeout_s": 60}
    engines = {"prompt": "x", "seed": 1, "logit_bias": {"1": 2}, "stream": stream}
    if stream:
        engines["stream_options"] = {"include_usage": True}
    response = await http.post(PATH, json={"model": "m", **hints, **engines})
    assert response.status_code == 200
    assert replicas.bodies == [engines]


async def _rest(response: httpx.Response) -> str:
    """What comes yet, without the keep-alives."""
    return "".join([part async for part in response.aiter_text()]).replace(": keep-alive\n", "")
