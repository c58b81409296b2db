"""Completions and embeddings: answered without a run; no log, no cache."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.errors import AifactoryError, BadRequest, DeadlineExceeded, NotFound, UpstreamFailed
from serve_app.gateway import exchange_span
from serve_app.gateway.asks import resolve_model
from serve_app.gateway.exchange import caller_of, unless_left
from serve_app.gateway.exchange_span import begin_exchange, note_cut
from serve_app.gateway.http_app import CLIENT_LEFT, OrjsonResponse, read_body, state_of
from serve_app.gateway.metering import Chunks, enter, metered, with_usage
from serve_app.gateway.schema import CompletionRequest, EmbeddingRequest, check, parse_object
from serve_app.gateway.sse import DONE, error_frame
from serve_app.ports import Embedder
from serve_app.runs import new_trace_id
from serve_app.spans import read_traceparent
from serve_app.telemetry import logger

router = APIRouter()
T = TypeVar("T")
_LONGEST_TOKEN = 32  # characters


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Passed through to a replica: no log, no cache."""
    state = state_of(request)
    trace_id = new_trace_id()
    begin_exchange(request, trace_id, read_traceparent(request.headers.getlist("traceparent")))
    headers = {"x-trace-id": trace_id, "x-route": "direct", "x-cache": "bypass"}
    request.state.error_headers = headers
    caller = await caller_of(request, state)
    body = parse_object(await read_body(request, state.settings.max_body_bytes))
    parsed = check(CompletionRequest, body)
    project = caller.acting_for(parsed.x_project)
    model, adapter = resolve_model(parsed.model, parsed.x_adapter, state.lifecycle.replicas)
    body = {name: value for name, value in body.items() if not name.startswith("x_")}
    timeout_s = parsed.x_timeout_s or state.settings.request_timeout_s
    account = await enter(request, state, caller, project)
    asked = body if account is None else with_usage(body)
    chunks = state.lifecycle.replicas.completions(model, adapter, asked, request_id=trace_id)
    if account is not None:
        chunks = metered(chunks, state.meter, account, body, trace_id, timeout_s)
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        first = await unless_left(request, _in_time(anext(chunks), deadline))
    except BaseException:
        await chunks.aclose()
        raise
    if first is None:
        await chunks.aclose()
        return Response(status_code=CLIENT_LEFT)
    if not parsed.stream:
        await chunks.aclose()
        return OrjsonResponse(first, headers=headers)

    return CompletionStream(first, chunks, deadline, headers)


class CompletionStream(StreamingResponse):
    """The chunks of one completion. When it ends, for whatever reason, they are closed, and the exchange's span says so."""

    def __init__(self, first: dict[str, Any], chunks: Chunks, deadline: float, headers: dict[str, str]) -> None:
        self._chunks = chunks
        self._finished = False
        self._broken: str | None = None  # the code of the error that ended the stream
        super().__init__(
            self._frames(first, deadline, headers["x-trace-id"]),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no", **headers},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._finished:
                note_cut(scope, exchange_span.CLIENT_LEFT, failed=False)
            elif self._broken is not None:
                note_cut(scope, self._broken, failed=True)
            await self._chunks.aclose()

    async def _frames(self, chunk: dict[str, Any] | None, deadline: float, trace_id: str) -> AsyncIterator[bytes]:
        try:
            while chunk is not None:
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
                chunk = await _in_time(anext(self._chunks, None), deadline)
            self._finished = True  # before the frame is out: a client may close the moment it has read it
            yield DONE
        except AifactoryError as error:
            yield self._cut(error)
        except Exception as error:  # noqa: BLE001 - a cut stream must say so, whatever cut it
            logger.opt(exception=error).error("completion broke", trace_id=trace_id)
            yield self._cut(UpstreamFailed("the completion broke off; the log has the cause under this trace_id"))

    def _cut(self, error: AifactoryError) -> bytes:
        self._finished, self._broken = True, error.code
        return error_frame(error)


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    state = state_of(request)
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
    account = await enter(request, state, caller, caller.project)
    vectors, tokens = await _embed(embedder, parsed.input)
    if account is not None:
        await state.meter.charge(account, tokens)
    entries = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, parsed.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return OrjsonResponse({"object": "list", "data": entries, "model": embedder.model_id, "usage": usage})


async def _in_time(step: Awaitable[T], deadline: float) -> T:
    """The result of `step`, until `deadline` (loop time). Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await step
    except TimeoutError:
        raise DeadlineExceeded("the completion did not finish within its time (x_timeout_s)") from None


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
