"""Chunks of the simulated replica as OpenAI's wire wants them: SSE frames, or one whole answer."""

from collections.abc import AsyncIterator
from typing import Any

import orjson

from bench.gateway.work import SIMULATED
from serve_app.replicas.simulated import SimulatedServer

DONE = b"data: [DONE]\n\n"


class SimulatedModels:
    """The simulated models in this process, each at its pace."""

    def __init__(self) -> None:
        self._servers = {name: SimulatedServer(name, pace.model_dump()) for name, pace in SIMULATED.items()}

    async def chunks(self, body: dict[str, Any], request_id: str) -> AsyncIterator[dict[str, Any]]:
        """The answer's chunks. Raises ValueError with the engine's own words when it refuses the body, KeyError for no model."""
        items = self._servers[body["model"]].chat_chunks(body, request_id)
        head: Any = await anext(items)
        if head["status"] != 200:
            raise ValueError(head["error"]["message"])
        async for item in items:
            yield item  # type: ignore[misc]  # text only with a fault, and there are none here


async def frames(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """SSE as vLLM's own server writes it: no usage unless asked for, `[DONE]` at the end."""
    async for chunk in chunks:
        if chunk["choices"]:
            chunk.pop("usage", None)
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
    yield DONE


async def whole(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """One `chat.completion` of one choice."""
    text, end, last = [], None, {}
    async for chunk in chunks:
        last = chunk
        for choice in chunk["choices"]:
            text.append(choice["delta"].get("content", ""))
            end = choice["finish_reason"] or end
    message = {"role": "assistant", "content": "".join(text)}
    return {
        "id": last["id"],
        "object": "chat.completion",
        "created": last["created"],
        "model": last["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": end}],
        "usage": last["usage"],
    }
