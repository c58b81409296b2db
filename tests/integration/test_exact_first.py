"""The exact look-up is on its way before anything is done for the one by meaning, and waits for nothing of it."""

import asyncio

from serve_app.ports import CacheHit
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore
from tests.integration.gateway_server import HashEmbedder, ask, serve_gateway

WAIT_S = 30


class Parts:
    """What happened, in order; the text is read by the embedder while the look-up is on its way."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.read = asyncio.Event()


class FarCache(InMemoryAnswerCache):
    """Its exact answer comes once the embedder has read the text."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._parts = parts

    async def exact(self, req_id: str) -> CacheHit | None:
        self._parts.order.append("asked")
        async with asyncio.timeout(WAIT_S):
            await self._parts.read.wait()
        self._parts.order.append("answered")
        return await super().exact(req_id)


class TellingEmbedder(HashEmbedder):
    """Tells when it reads a text."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def count_tokens(self, text: str) -> int:
        self._parts.order.append("read")
        self._parts.read.set()
        return super().count_tokens(text)


async def test_a_text_is_read_while_the_exact_look_up_is_on_its_way() -> None:
    parts = Parts()
    cache = FarCache(parts)
    own = {"cache": cache, "store": InMemoryRunStore(cache), "embedder": TellingEmbedder(parts)}
    async with serve_gateway(own) as gateway, gateway.http() as http:
        for result in ("miss", "exact"):
            parts.order.clear()
            parts.read.clear()
            answer = await ask(http, "What is the capital of France?")
            assert answer.headers["x-cache"] == result
            assert parts.order == ["asked", "read", "answered"]
