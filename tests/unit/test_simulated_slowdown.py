"""A simulated replica that slows with the number of its requests, as an engine does."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

from serve_app.replicas.simulated import SimulatedServer

TOKENS = 11


async def seconds(server: SimulatedServer, together: int) -> float:
    """How long so many equal requests take that begin together."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS}

    async def ask(number: int) -> None:
        async with aclosing(server.chat_chunks(body, str(number))) as items:
            async for _ in items:
                pass

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(together):
            group.create_task(ask(number))
    return time.monotonic() - started


async def test_every_other_request_adds_to_each_token() -> None:
    server = SimulatedServer("m", {"ttft_ms": 0, "itl_ms": 5, "slowdown_ms": 20})
    alone_s = min([await seconds(server, 1) for _ in range(3)])
    together_s = await seconds(server, 4)
    assert alone_s >= (TOKENS - 1) * 0.005
    assert together_s >= (TOKENS - 1) * (0.005 + 3 * 0.020) * 0.95
    assert together_s > 2 * alone_s


async def test_without_the_knob_the_pace_is_set() -> None:
    server = SimulatedServer("m", {"ttft_ms": 0, "itl_ms": 20})
    assert await seconds(server, 8) < 8 * (TOKENS - 1) * 0.020, "they run side by side"
