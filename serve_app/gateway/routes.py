"""The paths of the API. Each checks the caller, then the body, then lets the lifecycle answer."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from serve_app.errors import AifactoryError, BadRequest, NotFound
from serve_app.gateway.asks import Caller, build_ask, resolve_model
from serve_app.gateway.http_app import GatewayState, OrjsonResponse, error_response, read_body, state_of
from serve_app.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest, check, parse_object
from serve_app.gateway.sse import DONE, EventStream, Reader, Renderer, collect, error_frame
from serve_app.lifecycle.handle import Reply
from serve_app.ports import Embedder, RunRecord
from serve_app.runs import new_trace_id
from serve_app.settings import DEBATE_MODEL_ID
from serve_app.telemetry import bound

router = APIRouter()
_CLIENT_LEFT = 499


@router.get("/healthz")
async def healthz() -> Response:
    """The process lives."""
    return OrjsonResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Every part answers; 503 names those that do not."""
    parts = dict(await state_of(request).probe())
    ready = all(state == "ok" for state in parts.values())
    return OrjsonResponse({"ready": ready, "parts": parts}, status_code=200 if ready else 503)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    state = state_of(request)
    await _caller(request, state)
    return OrjsonResponse({"object": "list", "data": _models(state)})


@router.get("/v1/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    state = state_of(request)
    await _caller(request, state)
    for model in _models(state):
        if model["id"] == model_id:
            return OrjsonResponse(model)
    raise NotFound(f"model {model_id!r} does not exist", param="model", code="model_not_found")


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    state = state_of(request)
    trace_id = new_trace_id()
    request.state.error_headers = {"x-trace-id": trace_id}
    caller = await _caller(request, state)
    body = parse_object(await read_body(request, state.settings.max_body_bytes))
    parsed = check(ChatRequest, body)
    ask = build_ask(
        parsed,
        body,
        trace_id=trace_id,
        caller=caller,
        headers=request.headers,
        settings=state.settings,
        replicas=state.lifecycle.replicas,
    )
    with bound(trace_id, request_id=request.state.request_id):
        reply = await state.lifecycle.handle(ask)
        request.state.error_headers = _headers(reply)
        if not parsed.stream:
            return await _whole(request, reply)
        drafts = parsed.x_debate is None or parsed.x_debate.drafts
        include_usage = parsed.stream_options is not None and parsed.stream_options.include_usage
        return await _streamed(state, reply, include_usage=include_usage, drafts=drafts)


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Passed through to a replica: no log, no cache."""
    state = state_of(request)
    trace_id = new_trace_id()
    headers = {"x-trace-id": trace_id, "x-route": "direct", "x-cache": "bypass"}
    request.state.error_headers = headers
    await _caller(request, state)
    body = parse_object(await read_body(request, state.settings.max_body_bytes))
    parsed = check(CompletionRequest, body)
    model, adapter = resolve_model(parsed.model, parsed.x_adapter, state.lifecycle.replicas)
    body = {name: value for name, value in body.items() if not name.startswith("x_")}
    chunks = state.lifecycle.replicas.completions(model, adapter, body, request_id=trace_id)
    try:
        first = await _unless_left(request, anext(chunks))
    except BaseException:
        await chunks.aclose()
        raise
    if first is None:
        await chunks.aclose()
        return Response(status_code=_CLIENT_LEFT)
    if not parsed.stream:
        await chunks.aclose()
        return OrjsonResponse(first, headers=headers)

    async def frames() -> AsyncIterator[bytes]:
        try:
            yield b"data: " + orjson.dumps(first) + b"\n\n"
            async for chunk in chunks:
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
            yield DONE
        except AifactoryError as error:
            yield error_frame(error)
        finally:
            await chunks.aclose()

    return StreamingResponse(frames(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no", **headers})


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    state = state_of(request)
    await _caller(request, state)
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
    vectors, tokens = await _embed(embedder, parsed.input)
    entries = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, parsed.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return OrjsonResponse({"object": "list", "data": entries, "model": embedder.model_id, "usage": usage})


@router.get("/v1/runs/{trace_id}")
async def get_run(request: Request, trace_id: str) -> Response:
    row = await _run(request, trace_id)
    answer = row.answer
    return OrjsonResponse(
        {
            "object": "run",
            "trace_id": row.trace_id,
            "req_id": row.req_id,
            "project": row.project,
            "status": row.status.value,
            "route": row.route,
            "model": row.model,
            "attempt": row.attempt,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
            "usage": row.usage,
            "winner": answer.winner if answer else None,
            "debate": answer.debate.model_dump(exclude_none=True) if answer and answer.debate else None,
            "error": row.error,
            "dagster_run_id": row.dagster_run_id,
        },
        headers={"x-trace-id": row.trace_id, "x-route": row.route},
    )


@router.get("/v1/runs/{trace_id}/events")
async def run_events(request: Request, trace_id: str) -> Response:
    state = state_of(request)
    row = await _run(request, trace_id)
    reply = await state.lifecycle.attach(row, after=_after(request))
    return await _streamed(state, reply, include_usage=True, drafts=True)


@router.post("/v1/runs/{trace_id}/cancel")
async def cancel_run(request: Request, trace_id: str) -> Response:
    row = await _run(request, trace_id)
    await state_of(request).lifecycle.cancel(row, "cancelled by the caller")
    status = row.status.value if row.status.terminal else "cancelling"
    return OrjsonResponse(
        {"object": "run", "trace_id": row.trace_id, "status": status}, status_code=200 if row.status.terminal else 202
    )


async def _whole(request: Request, reply: Reply) -> Response:
    reader = Reader(reply)
    try:
        body = await _unless_left(request, collect(reader))
    finally:
        await reader.close()
    if body is None:
        return Response(status_code=_CLIENT_LEFT)
    return OrjsonResponse(body, headers=_headers(reply))


async def _streamed(state: GatewayState, reply: Reply, *, include_usage: bool, drafts: bool) -> Response:
    reader = Reader(reply)
    keepalive_s = state.settings.keepalive_s
    try:
        first = await reader.first(keepalive_s)
    except AifactoryError as error:
        await reader.close()
        return error_response(error, _headers(reply))
    except BaseException:
        await reader.close()
        raise
    renderer = Renderer(reply, include_usage=include_usage, drafts=drafts)
    return EventStream(reader, first, renderer, keepalive_s=keepalive_s, headers=_headers(reply))


async def _unless_left(request: Request, work: Any) -> Any:
    """The result of `work`, or None when the client leaves first: then the work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving}, timeout=5)


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _caller(request: Request, state: GatewayState) -> Caller:
    return await state.auth.caller(request.headers.get("authorization"))


async def _run(request: Request, trace_id: str) -> RunRecord:
    state = state_of(request)
    caller = await _caller(request, state)
    for project in (caller.project, *caller.projects):
        row = await state.lifecycle.store.find(trace_id, project=project)
        if row is not None:
            return row
    raise NotFound(f"run {trace_id!r} does not exist in your project", param="trace_id", code="run_not_found")


def _after(request: Request) -> int:
    last = request.headers.get("last-event-id") or request.query_params.get("after") or "-1"
    try:
        return int(last)
    except ValueError:
        raise BadRequest(
            f"Last-Event-ID (or ?after=) must be a number, got {last!r}", param="after", code="invalid_value"
        ) from None


def _headers(reply: Reply) -> dict[str, str]:
    headers = {"x-trace-id": reply.trace_id, "x-route": reply.route, "x-cache": reply.cache.result}
    if reply.cache.similarity is not None:
        headers["x-cache-similarity"] = f"{reply.cache.similarity:.4f}"
    if reply.replayed:
        headers["idempotent-replayed"] = "true"
    return headers


def _models(state: GatewayState) -> list[dict[str, Any]]:
    owned = {"object": "model", "created": state.started, "owned_by": "aifactory"}
    models: list[dict[str, Any]] = []
    for card in state.lifecycle.replicas.cards():
        models.append({"id": card.model_id, **owned, "parent": card.parent, "max_model_len": card.max_model_len})
    if state.lifecycle.embedder is not None:
        models.append({"id": state.lifecycle.embedder.model_id, **owned})
    models.append({"id": DEBATE_MODEL_ID, **owned})
    return models


async def _embed(embedder: Embedder, value: str | list[str] | list[int] | list[list[int]]) -> tuple[list[list[float]], int]:
    """Vectors and token count of any of the four forms that `input` may have."""
    items: list[Any] = [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)
    texts = isinstance(items[0], str)
    sizes = [embedder.count_tokens(item) if texts else len(item) for item in items]
    for number, size in enumerate(sizes):
        if size > embedder.max_tokens:
            raise BadRequest(
                f"input {number} has {size} tokens, {embedder.model_id} takes at most {embedder.max_tokens}; split it",
                param="input",
                code="context_length_exceeded",
            )
    return await (embedder.embed(items) if texts else embedder.embed_ids(items)), sum(sizes)


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
