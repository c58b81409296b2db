"""The paths of the API. Each checks the caller, then the body, then lets the lifecycle answer."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve_app.configured import DEBATE_MODEL_ID
from serve_app.errors import NotFound
from serve_app.gateway import documents_api, passthrough, runs_api
from serve_app.gateway.asks import build_ask
from serve_app.gateway.exchange import caller_of, headers_of, streamed, whole
from serve_app.gateway.exchange_span import begin_exchange, note_reply
from serve_app.gateway.http_app import GatewayState, OrjsonResponse, read_body, state_of
from serve_app.gateway.metering import enter
from serve_app.gateway.schema import ChatRequest, check, parse_object
from serve_app.runs import new_trace_id
from serve_app.spans import read_traceparent
from serve_app.telemetry import bound

router = APIRouter()


async def chat(request: Request) -> Response:
    state = state_of(request)
    trace_id, traceparent = new_trace_id(), read_traceparent(request.headers.getlist("traceparent"))
    begin_exchange(request, trace_id, traceparent)
    request.state.error_headers = {"x-trace-id": trace_id}
    caller = await caller_of(request, state)
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
        traceparent=traceparent,
    )
    await enter(request, state, caller, ask.question.project)
    with bound(trace_id, request_id=request.state.request_id):
        reply = await state.lifecycle.handle(ask)
        request.state.error_headers = headers_of(reply)
        note_reply(request, reply, model=parsed.model, stream=bool(parsed.stream))
        reply.sources = parsed.x_rag is not None and parsed.x_rag.sources
        if not parsed.stream:
            return await whole(request, reply)
        drafts = parsed.x_debate is None or parsed.x_debate.drafts
        include_usage = parsed.stream_options is not None and parsed.stream_options.include_usage
        return await streamed(request, reply, include_usage=include_usage, drafts=drafts)


# First, because Serve and Starlette try one path after the other; and plain, because FastAPI has nothing to add to it.
router.add_route("/v1/chat/completions", chat, methods=["POST"])
router.include_router(passthrough.router)
router.include_router(runs_api.router)
router.include_router(documents_api.router)


@router.get("/healthz")
async def healthz() -> Response:
    """The process lives."""
    return OrjsonResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Every part answers; 503 names those that do not."""
    found = await state_of(request).probe()
    ready = all(state == "ok" for state in found.values())
    # No key is asked for here: which part is away, not where it is.
    parts = {name: "ok" if state == "ok" else "away" for name, state in found.items()}
    return OrjsonResponse({"ready": ready, "parts": parts}, status_code=200 if ready else 503)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    state = state_of(request)
    await caller_of(request, state)
    return OrjsonResponse({"object": "list", "data": _models(state)})


@router.get("/v1/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    state = state_of(request)
    await caller_of(request, state)
    for model in _models(state):
        if model["id"] == model_id:
            return OrjsonResponse(model)
    raise NotFound(f"model {model_id!r} does not exist", param="model", code="model_not_found")


def _models(state: GatewayState) -> list[dict[str, Any]]:
    owned = {"object": "model", "created": state.started, "owned_by": "aifactory"}
    models: list[dict[str, Any]] = []
    for card in state.lifecycle.replicas.cards():
        models.append({"id": card.model_id, **owned, "parent": card.parent, "max_model_len": card.max_model_len})
    if state.lifecycle.embedder is not None:
        models.append({"id": state.lifecycle.embedder.model_id, **owned})
    models.append({"id": DEBATE_MODEL_ID, **owned})
    return models
