"""What a simulated replica does wrong on purpose. Which request is hit depends on its number alone."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Any, Final

from serve_app.configured import FaultConfig
from serve_app.errors import AifactoryError, BadRequest, Overloaded, Unavailable, UpstreamFailed

Item = dict[str, Any] | str
Hold = Callable[[], AbstractContextManager[None]]

# Refused before the first token, with the status of the error.
_REFUSALS: Final[dict[str, AifactoryError]] = {
    "overloaded": Overloaded("injected: too many requests"),
    "unavailable": Unavailable("injected: the engine is away"),
    "server_error": UpstreamFailed("injected: the engine failed"),
    "context": BadRequest(
        "injected: the prompt is longer than the model's context", param="messages", code="context_length_exceeded"
    ),
    "filter": BadRequest("injected: the prompt was filtered", param="messages", code="content_filter"),
}
_NOT_JSON: Final = '{"choices": [{"index": 0, "delta": {"con'


class InjectedReset(ConnectionResetError):
    """The replica breaks off without a word."""


class FaultPlan:
    """Hands the faults out, request by request."""

    def __init__(self, faults: Sequence[FaultConfig]) -> None:
        self._faults = tuple(faults)
        self._hits = [0] * len(self._faults)
        self._requests = 0

    def next(self) -> FaultConfig | None:
        """The fault that hits the request that has just come, if any."""
        number, self._requests = self._requests, self._requests + 1
        for place, fault in enumerate(self._faults):
            if number % fault.every == 0 and (fault.times is None or self._hits[place] < fault.times):
                self._hits[place] += 1
                return fault
        return None


async def spoilt(
    items: AsyncGenerator[dict[str, Any], None], fault: FaultConfig, body: dict[str, Any], hold: Hold
) -> AsyncGenerator[Item, None]:
    """The items of a good answer, gone wrong.

    - `overloaded` 429, `unavailable` 503, `server_error` 500, `context` and `filter` 400: refused before the first token.
    - `reset`: breaks off before the status. `no_reply`: nothing ever comes. `slow_start`: the first token takes `seconds`.
    - `cut`: breaks off after `after` tokens. `no_prefill`: the same, and a request that ends in the assistant's own
      words is refused with 400. `stall`: is silent for `seconds` after `after` tokens, then goes on.
      `malformed`: sends half a chunk after `after` tokens.
    - `no_finish`: all tokens, a clean end, no finish_reason. `no_end`: breaks off after finish_reason.
      `filtered`: ends with finish_reason content_filter. `bad_usage`: token counts that are no numbers.

    `hold` counts the request as waiting while it is kept before its first token.
    """
    async with aclosing(items):
        if refusal := _refusal(fault, body):
            yield {"status": 500 if fault.kind == "server_error" else refusal.status, "error": refusal.body()}
            return
        if fault.kind == "reset":
            raise InjectedReset("injected: reset before the first byte")
        if fault.kind in ("no_reply", "slow_start"):
            with hold():
                await (asyncio.Event().wait() if fault.kind == "no_reply" else asyncio.sleep(fault.seconds))
        async with aclosing(_after(items, fault)) as broken:
            async for item in broken:
                yield item


def _refusal(fault: FaultConfig, body: dict[str, Any]) -> AifactoryError | None:
    if fault.kind == "no_prefill" and (body.get("messages") or [{}])[-1].get("role") == "assistant":
        return BadRequest("injected: the last message may not be the assistant's", param="messages")
    return _REFUSALS.get(fault.kind)


async def _after(items: AsyncIterator[dict[str, Any]], fault: FaultConfig) -> AsyncGenerator[Item, None]:
    """What goes wrong once tokens flow."""
    tokens = 0
    async for item in items:
        spoken = any(_has_token(choice) for choice in item.get("choices", ()))
        if spoken and tokens == fault.after:
            if fault.kind in ("cut", "no_prefill"):
                raise InjectedReset(f"injected: cut after {tokens} tokens")
            if fault.kind == "stall":
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "malformed":
                yield _NOT_JSON
        tokens += spoken
        yield _ended_wrongly(item, fault)
        if fault.kind == "no_end" and any(choice.get("finish_reason") for choice in item.get("choices", ())):
            raise InjectedReset("injected: broken off after finish_reason")


def _has_token(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(delta.get("content") or delta.get("tool_calls") or choice.get("text"))


def _ended_wrongly(item: dict[str, Any], fault: FaultConfig) -> dict[str, Any]:
    if fault.kind == "bad_usage" and item.get("usage"):
        return {**item, "usage": {"prompt_tokens": "many", "completion_tokens": None}}
    if fault.kind in ("no_finish", "filtered") and "choices" in item:
        reason = "content_filter" if fault.kind == "filtered" else None
        return {**item, "choices": [{**c, "finish_reason": c.get("finish_reason") and reason} for c in item["choices"]]}
    return item
