"""Extension fields do what they say: the adapter reaches the replica, the time to live the cache."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from serve_app.events import EventBody
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore
from tests.integration.gateway_server import GatewayUnderTest, ScriptedReplicas, ask, serve_gateway


@dataclass
class RecordingReplicas(ScriptedReplicas):
    """Notes which model and adapter each call is for."""

    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def stream(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[EventBody, None]:
        self.asked.append((model, adapter))
        return super().stream(model, adapter, body, request_id=request_id)

    def completions(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append((model, adapter))
        return super().completions(model, adapter, body, request_id=request_id)


@pytest.fixture
def replicas() -> RecordingReplicas:
    return RecordingReplicas()


@pytest.fixture
def cache() -> InMemoryAnswerCache:
    return InMemoryAnswerCache()


@pytest.fixture
async def gateway(replicas: RecordingReplicas, cache: InMemoryAnswerCache) -> AsyncIterator[GatewayUnderTest]:
    parts = {"replicas": replicas, "cache": cache, "store": InMemoryRunStore(cache)}
    async with serve_gateway(parts) as served:
        yield served


async def test_the_adapter_of_a_request_reaches_the_replica(http: httpx.AsyncClient, replicas: RecordingReplicas) -> None:
    plain = await ask(http, "hello")
    by_field = await ask(http, "hello", x_adapter="poet")
    assert replicas.asked == [("m", None), ("m", "poet")], "the base model's answer is not the adapter's"
    by_name = await ask(http, "hello", model="m:poet")
    assert by_name.headers["x-cache"] == "exact", "two ways to say the same"
    assert [answer.json()["model"] for answer in (plain, by_field, by_name)] == ["m", "m:poet", "m:poet"]


@pytest.mark.parametrize("named", [{"model": "m", "x_adapter": "poet"}, {"model": "m:poet"}])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_adapter_of_a_completion_reaches_the_replica(
    http: httpx.AsyncClient, replicas: RecordingReplicas, named: dict[str, str], stream: bool
) -> None:
    response = await http.post("/v1/completions", json={**named, "prompt": "x", "stream": stream})
    assert response.status_code == 200
    assert replicas.asked == [("m", "poet")]


async def test_an_answer_is_kept_as_long_as_the_request_says(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, cache: InMemoryAnswerCache
) -> None:
    await ask(http, "one", x_cache={"ttl_s": 1234})
    await ask(http, "two", x_cache={"mode": "refresh", "ttl_s": 77})
    await ask(http, "three")
    lives = [round(entry.expires_at - entry.hit.created_at) for entry in cache._entries.values()]
    assert lives == [1234, 77, gateway.state.settings.cache_ttl_s]
