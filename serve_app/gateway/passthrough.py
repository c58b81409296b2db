"""Completions and embeddings: answered without a run; no log, no cache."""

import asyncio
import base64
from collections.abc import Awaitable
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve_app.errors import BadRequest, NotFound
from serve_app.gateway.asks import resolve_model
from serve_app.gateway.completion_stream import CompletionReader, CompletionStream, late
from serve_app.gateway.exchange import caller_of, unless_left
from serve_app.gateway.exchange_span import begin_exchange
from serve_app.gateway.http_app import CLIENT_LEFT, OrjsonResponse, read_body, state_of
from serve_app.gateway.metering import Chunks, enter, metered, with_usage
from serve_app.gateway.schema import CompletionRequest, EmbeddingRequest, check, parse_object
from serve_app.ports import Embedder
from serve_app.runs import answer_params, new_trace_id
from serve_app.spans import read_traceparent
from serve_app.telemetry import bound

router = APIRouter()
T = TypeVar("T")
_LONGEST_TOKEN = 32  # characters


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Passed through to a replica: no log, no cache."""
    state = state_of(request)
    headers = _named(request)
    trace_id = headers["x-trace-id"]
    begin_exchange(request, trace_id, read_traceparent(request.headers.getlist("traceparent")))
    caller = await caller_of(request, state)
    body = parse_object(await read_body(request, state.settings.max_body_bytes))
    parsed = check(CompletionRequest, body)
    project = caller.acting_for(parsed.x_project)
    model, adapter = resolve_model(parsed.model, parsed.x_adapter, state.lifecycle.replicas)
    asked = _engines_part(parsed, body)
    timeout_s = parsed.x_timeout_s or state.settings.request_timeout_s
    account = await enter(request, state, caller, project)
    with bound(trace_id, request_id=request.state.request_id):
        told = asked if account is None else with_usage(asked)
        chunks = state.lifecycle.replicas.completions(model, adapter, told, request_id=trace_id)
        if account is not None:
            chunks = metered(chunks, state.meter, account, asked, trace_id, timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        if not parsed.stream:
            return await _whole(request, chunks, deadline, headers)
        return await _streamed(request, chunks, deadline, headers)


def _named(request: Request) -> dict[str, str]:
    """The headers of an exchange that makes no run, on errors too: its own id finds it in the logs."""
    request.state.error_headers = {"x-trace-id": new_trace_id(), "x-route": "direct", "x-cache": "bypass"}
    return dict(request.state.error_headers)


def _engines_part(parsed: CompletionRequest, body: dict[str, Any]) -> dict[str, Any]:
    """What the engine is told of a request: as much as in a chat (no priority, no extension), and how to stream it."""
    told = {**answer_params(body), "stream": bool(parsed.stream)}
    return told if body.get("stream_options") is None else {**told, "stream_options": body["stream_options"]}


async def _whole(request: Request, chunks: Chunks, deadline: float, headers: dict[str, str]) -> Response:
    try:
        body = await unless_left(request, _in_time(anext(chunks), deadline))
    finally:
        await chunks.aclose()
    return Response(status_code=CLIENT_LEFT) if body is None else OrjsonResponse(body, headers=headers)


async def _streamed(request: Request, chunks: Chunks, deadline: float, headers: dict[str, str]) -> Response:
    """The stream, opened with the first chunk or at the first keep-alive: an early error gets its own HTTP status."""
    reader = CompletionReader(chunks, deadline=deadline, keepalive_s=state_of(request).settings.keepalive_s)
    try:
        first = await unless_left(request, reader.next())
    except BaseException:
        await reader.close()
        raise
    if first is None:
        await reader.close()
        return Response(status_code=CLIENT_LEFT)
    return CompletionStream(reader, first, headers=headers)


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    state = state_of(request)
    headers = _named(request)
    caller = await caller_of(request, state)
    parsed = check(EmbeddingRequest, parse_object(await read_body(request, state.settings.max_body_bytes)))
    embedder = state.lifecycle.embedder
    if embedder is None or parsed.model != embedder.model_id:
        known = embedder.model_id if embedder else "none"
        raise NotFound(f"embedding model {parsed.model!r} does not exist; known: {known}", param="model", code="model_not_found")
    if parsed.dimensions is not None and parsed.dimensions != embedder.dimensions:
        raise BadRequest(
            f"{embedder.model_id} gives {embedder.dimensions} dimensions and cannot give {parsed.dimensions}",
            param="dimensions",
            code="unsupported",
        )
    account = await enter(request, state, caller, caller.acting_for(parsed.x_project))
    with bound(headers["x-trace-id"], request_id=request.state.request_id):
        vectors, tokens = await _embed(embedder, parsed.input)
        if account is not None:
            await state.meter.charge(account, tokens)
    entries = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, parsed.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return OrjsonResponse({"object": "list", "data": entries, "model": embedder.model_id, "usage": usage}, headers=headers)


async def _in_time(step: Awaitable[T], deadline: float) -> T:
    """The result of `step`, until `deadline` (loop time). Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await step
    except TimeoutError:
        raise late() from None


async def _embed(embedder: Embedder, value: str | list[str] | list[int] | list[list[int]]) -> tuple[list[list[float]], int]:
    """Vectors and token count of any of the four forms that `input` may have."""
    items: list[Any] = [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)
    texts = isinstance(items[0], str)
    # Refused by length first: the tokenizer works on the event loop. No token is longer than a few dozen characters.
    for number, item in enumerate(items):
        if len(item) > embedder.max_tokens * _LONGEST_TOKEN:
            raise BadRequest(
                f"input {number} is too long for {embedder.model_id}; split it", param="input", code="context_length_exceeded"
            )
    sizes = [embedder.count_tokens(item) if texts else len(item) for item in items]
    for number, size in enumerate(sizes):
        if size > embedder.max_tokens:
            raise BadRequest(
                f"input {number} has {size} tokens, {embedder.model_id} takes at most {embedder.max_tokens}; split it",
                param="input",
                code="context_length_exceeded",
            )
    return await (embedder.embed(items, unit=False) if texts else embedder.embed_ids(items)), sum(sizes)


def _encoded(vector: list[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
