"""Limits at the door: a request of a key or project that has some is counted before it costs anything.

For a caller without limits nothing here asks Postgres. While Postgres is away a caller with limits gets 503, see
docs/adr/0023-limits-in-postgres.md.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio
from fastapi import Request

from serve_app.errors import Unavailable
from serve_app.gateway.asks import Caller
from serve_app.gateway.http_app import GatewayState
from serve_app.limits import Account, Meter
from serve_app.telemetry import logger

_USAGE_ALL_ALONG = {"include_usage": True, "continuous_usage_stats": True}

Chunks = AsyncGenerator[dict[str, Any], None]


async def enter(request: Request, state: GatewayState, caller: Caller, project: str) -> Account | None:
    """Who is charged for this request, if anybody. The response gets the headers that tell what is left.

    Raises RateLimited or QuotaExhausted when nothing is, Unavailable when that cannot be known.
    """
    account = caller.account(project)
    if account is None:
        return None
    standing = await state.meter.enter(account)
    request.state.limit_headers = standing.headers()
    if standing.refusal is not None:
        raise standing.refusal
    return account


def with_usage(body: dict[str, Any]) -> dict[str, Any]:
    """The completion request that also tells a stream's usage, as it grows."""
    return {**body, "stream_options": {**(body.get("stream_options") or {}), **_USAGE_ALL_ALONG}} if body.get("stream") else body


async def metered(chunks: Chunks, meter: Meter, account: Account, body: dict[str, Any], trace_id: str, for_s: float) -> Chunks:
    """The chunks of a completion that was asked `with_usage`, as `body` would have had them.

    It takes one of the account's places first (raises RateLimited), and is charged whatever becomes of it.
    """
    wanted = (body.get("stream_options") or {}) if body.get("stream") else _USAGE_ALL_ALONG
    spent = _Spent(body)
    stack = AsyncExitStack()  # left from below: the engine stops, what it made is charged, then the place is free
    try:
        await stack.enter_async_context(meter.place(account, trace_id, for_s=for_s))  # refused: `chunks` has not begun
        stack.push_async_callback(_charge, meter, account, spent)
        await stack.enter_async_context(aclosing(chunks))
        async for chunk in chunks:
            spent.add(chunk)
            usage = chunk.get("usage")
            if not usage or wanted.get("continuous_usage_stats") or (wanted.get("include_usage") and not chunk["choices"]):
                yield chunk
            elif chunk["choices"]:
                yield {name: value for name, value in chunk.items() if name != "usage"}
    finally:
        # The server of a client that has left cancels every wait in here; what was spent is charged all the same.
        with anyio.CancelScope(shield=True):
            await stack.aclose()


class _Spent:
    """The tokens of one completion, as its chunks tell them: each choice its own, the last chunk or a whole body all."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._whole_bodies = not body.get("stream")
        self._choices_each = body.get("n") or 1
        self._prompts: dict[int, int] = {}
        self._answers: dict[int, int] = {}  # by the choice's index, which the engine gives: n for each prompt
        self._all: int | None = None

    def add(self, chunk: dict[str, Any]) -> None:
        usage, choices = chunk.get("usage"), chunk.get("choices") or ()
        if usage and (self._whole_bodies or not choices):
            self._all = usage["total_tokens"]
        for index in (choice["index"] for choice in choices):
            if usage:
                self._prompts[index // self._choices_each] = usage["prompt_tokens"]
                self._answers[index] = usage["total_tokens"] - usage["prompt_tokens"]
            else:
                # An engine that tells the usage at the end only: a chunk is a token at least.
                self._answers[index] = self._answers.get(index, 0) + 1

    @property
    def tokens(self) -> int:
        """So far; a prompt counts once, when the first of its choices has come."""
        return sum(self._prompts.values()) + sum(self._answers.values()) if self._all is None else self._all


async def _charge(meter: Meter, account: Account, spent: _Spent) -> None:
    tokens = spent.tokens
    if tokens == 0:
        return
    try:
        await meter.charge(account, tokens)
    except Unavailable as error:
        logger.warning("tokens were not charged: Postgres is away", tokens=tokens, project=account.project, error=error.message)
