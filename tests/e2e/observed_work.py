"""A little of everything that a gateway counts."""

import asyncio
import time
from typing import Any

import httpx

from tests.e2e.stack_under_test import RunningStack

_SENTENCES = ("How do I cook rice?", "How do I cook the rice?", "How do I cook rice for 4 guests?")


async def leave_a_stream(stack: RunningStack) -> None:
    """Read the first piece of a long stream, and go."""
    body = {**_chat(f"leave {time.time_ns()}", stream=True), "model": "sim-large", "max_tokens": 2000}
    async with stack.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
        await anext(response.aiter_raw())


async def run_into_a_limit(stack: RunningStack) -> None:
    """Ask twice with a key that may ask once a minute."""
    key = (await asyncio.to_thread(stack.command, "keys", "create", "--project", "limited", "--requests-per-minute", "1")).stdout
    async with stack.http() as http:
        http.headers["Authorization"] = f"Bearer {key.strip()}"
        statuses = [(await http.post("/v1/chat/completions", json=_chat("limited"))).status_code for _ in range(2)]
    assert statuses == [200, 429]


async def observed_round(http: httpx.AsyncClient) -> None:
    """Direct, streamed, from the cache, by meaning, kept back by a guard, with documents, and a debate.

    Every round is in a scope of its own, so that a refuted answer of an earlier one takes nothing away.
    """
    system = f"round {time.time_ns()}"
    for text in (*_SENTENCES, _SENTENCES[0]):
        # A low bar: what is counted is looked for here, not what is right.
        await _ask(http, _chat(text, system=system, x_cache={"threshold": 0.5}))
    await _ask(http, _chat(text=f"stream {system}", stream=True))
    await _ask(http, _chat(text=f"documents {system}", x_route="rag"))
    await _ask(http, {**_chat(text=f"debate {system}"), "model": "debate"})
    await asyncio.sleep(1)  # a pace for the load, not a wait for anything


def _chat(text: str, *, system: str | None = None, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"model": "sim-small", "messages": messages, **fields}


async def _ask(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
