"""A gateway on a real socket over in-memory parts and a scripted model: for tests of the HTTP surface."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import httpx
import uvicorn

from serve_app.bus.audience import InMemoryAudience
from serve_app.bus.memory import InMemoryEventBus, InMemoryRunQueue
from serve_app.errors import AifactoryError, BadRequest
from serve_app.events import ChoiceEnd, EventBody, FinishedEvent, RoleEvent, TokenEvent, Usage, UsageEvent
from serve_app.gateway.auth import Authenticator, KeyCheck
from serve_app.gateway.http_app import GatewayState, build_http_app
from serve_app.lifecycle.handle import Lifecycle
from serve_app.limits import Account, Meter, Standing
from serve_app.ports import ModelCard
from serve_app.settings import Settings
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore
from serve_app.store.memory_documents import InMemoryDocuments
from serve_app.store.memory_trust import InMemoryCacheTrust
from serve_app.trust import CacheTrust

KEY = "aif-test-key"


@dataclass
class ScriptedReplicas:
    """A model that says `words`. It can be told to wait, and to break after some words."""

    words: list[str] = field(default_factory=lambda: ["The ", "capital ", "is ", "Paris."])
    break_after: int | None = None
    error: AifactoryError | None = None
    hold: asyncio.Event | None = None  # waits for it after the first word
    calls: int = 0
    running: int = 0
    aborted: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    completion: list[dict[str, Any]] = field(
        default_factory=lambda: [{"choices": [{"index": 0, "text": "Paris", "finish_reason": "stop"}]}]
    )  # the chunks of a legacy completion, which then waits for `hold` and breaks with `error`

    def cards(self) -> list[ModelCard]:
        return [ModelCard("m"), ModelCard("m:poet", parent="m")]

    async def stream(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[EventBody, None]:
        self.calls += 1
        self.running += 1
        self.bodies.append(body)
        ended = False
        try:
            if self.error is not None and self.break_after is None:
                raise self.error
            if body["messages"][-1].get("content") == "too long":
                raise BadRequest("the prompt is too long", code="context_length_exceeded")
            yield RoleEvent()
            for number, word in enumerate(self.words):
                if number == self.break_after and self.error is not None:
                    raise self.error
                yield TokenEvent(text=word)
                yield UsageEvent(usage=Usage(prompt_tokens=5, completion_tokens=number + 1, total_tokens=6 + number))
                if number == 0 and self.hold is not None:
                    await self.hold.wait()
            ended = True
            yield FinishedEvent(reason="stop", choices=(ChoiceEnd(finish_reason="stop"),))
        finally:
            self.running -= 1
            self.aborted += not ended

    async def completions(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.running += 1
        try:
            for chunk in self.completion:
                yield {"id": request_id, "object": "text_completion", "model": model, **chunk}
            if self.hold is not None:
                await self.hold.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.running -= 1

    async def answers(self, timeout_s: float) -> bool:
        return True


class HashEmbedder:
    """Vectors that few unequal texts share, the same in every process; no model."""

    model_id = "hash"
    dimensions = 4

    async def embed(self, texts: Sequence[str], *, unit: bool = True) -> list[list[float]]:
        return [[1.0, 0.0, 0.0, 0.0] if "same" in t else _unit(crc32(t.encode())) for t in texts]

    max_tokens = 50

    async def embed_ids(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        return [_unit(sum(ids)) for ids in token_ids]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def has_unknown(self, text: str) -> bool:
        return False


def _unit(seed: int) -> list[float]:
    return [0.0, *([1.0, 0.0, 0.0] if seed % 3 == 0 else [0.0, 1.0, 0.0] if seed % 3 == 1 else [0.0, 0.0, 1.0])]


@dataclass(frozen=True)
class _Owner:
    project: str
    projects: tuple[str, ...] = ()
    key_id: str = ""
    limited: frozenset[str] = frozenset()


class OneKey:
    """Knows one key, of project p, which may also act for q."""

    async def check(self, key: str) -> _Owner | None:
        return _Owner("p", ("q",)) if key == KEY else None


class NoLimits:
    """Fails when it is asked: the only key here has no limits, and then nobody may ask."""

    async def enter(self, account: Account) -> Standing:
        raise AssertionError(f"{account} has no limits")

    async def charge(self, account: Account, tokens: int) -> None:
        raise AssertionError(f"{account} has no limits")

    def place(self, account: Account, trace_id: str, *, for_s: float) -> AbstractAsyncContextManager[None]:
        raise AssertionError(f"{account} has no limits")


@dataclass
class GatewayUnderTest:
    url: str
    replicas: ScriptedReplicas
    store: InMemoryRunStore
    bus: InMemoryEventBus
    queue: InMemoryRunQueue
    lifecycle: Lifecycle
    state: GatewayState
    trust: CacheTrust

    def http(self, key: str = KEY) -> httpx.AsyncClient:
        """A client that shows the key."""
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, trust_env=False)


@asynccontextmanager
async def serve_gateway(
    parts: dict[str, Any] | None = None, *, keys: KeyCheck | None = None, meter: Meter | None = None, **overrides: Any
) -> AsyncIterator[GatewayUnderTest]:
    """Serve a gateway on a free port of this process's loop. `parts`, `keys` and `meter` replace the in-memory ones."""
    # By chance one of twenty semantic answers would be asked afresh; tests that want it say so.
    settings = Settings(config="simulated", **{"cache_verify_share": 0.0, **overrides})
    own_cache = InMemoryAnswerCache()
    doubles: dict[str, Any] = {
        "cache": own_cache,
        "store": InMemoryRunStore(own_cache),
        "bus": InMemoryEventBus(),
        "queue": InMemoryRunQueue(),
        "replicas": ScriptedReplicas(),
        "audience": InMemoryAudience(),
        "documents": InMemoryDocuments(own_cache),
        "trust": InMemoryCacheTrust(own_cache),
        "embedder": HashEmbedder(),
    }
    chosen = {**doubles, **(parts or {})}
    store, bus, queue, replicas = chosen["store"], chosen["bus"], chosen["queue"], chosen["replicas"]
    lifecycle = Lifecycle(settings, **chosen)

    async def probe() -> dict[str, str]:
        return {"postgres": "ok", "nats": "ok", "replicas": "ok"}

    state = GatewayState(
        settings, lifecycle, Authenticator(keys or OneKey(), ttl_s=30), probe, started=1, meter=meter or NoLimits()
    )
    await lifecycle.start()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_http_app(state), log_level="critical", lifespan="off"))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        port = listener.getsockname()[1]
        yield GatewayUnderTest(f"http://127.0.0.1:{port}", replicas, store, bus, queue, lifecycle, state, chosen["trust"])
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, 30)
        await lifecycle.close()
        listener.close()


async def ask(http: httpx.AsyncClient, text: str, **fields: Any) -> httpx.Response:
    """The answer to a chat of one message."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


async def until(condition: Any, timeout_s: float = 30) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
