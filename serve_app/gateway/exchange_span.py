"""The exchange with a client as a span of kind SERVER, by OpenTelemetry's conventions for HTTP."""

import time
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from serve_app.lifecycle.reply import Reply
from serve_app.spans import Fact, Place, Span, emit, traced

CLIENT_LEFT: Final = "client_left"  # an error.type
_STATE: Final = "exchange_span"
_AGENT_MAX: Final = 200  # characters of a client's name for itself


def begin_exchange(request: HTTPConnection, trace_id: str, traceparent: str | None) -> None:
    """From here on the exchange is measured; RequestMiddleware ends it. Nothing happens when nobody wants the span."""
    place = traced(trace_id, traceparent)
    if place is None:
        return
    scope = request.scope
    route = str(getattr(scope.get("route"), "path", scope["path"]))
    span = Span(f"{scope['method']} {route}", "server", place, place.exchange, place.caller, time.time())
    span.note(
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "user_agent.original": (request.headers.get("user-agent") or "")[:_AGENT_MAX] or None,
            "aifactory.request_id": request.state.request_id,
        }
    )
    setattr(request.state, _STATE, span)


def note_reply(request: HTTPConnection, reply: Reply, *, model: str, stream: bool) -> None:
    """What answers: the run that this request began, another that it joined, or a stored answer."""
    span: Span | None = getattr(request.state, _STATE, None)
    if span is None:
        return
    facts: dict[str, Fact | None] = {
        "gen_ai.request.model": model,
        "gen_ai.request.stream": stream,
        "aifactory.route": reply.route,
        "aifactory.cache.result": reply.cache.result,
        "aifactory.cache.similarity": reply.cache.similarity,
        "aifactory.replayed": reply.replayed,
    }
    span.note(facts)
    if reply.trace_id != span.place.run:
        # The id in the client's header is that of the run; its spans are in a trace of their own.
        span.note({"aifactory.trace_id": reply.trace_id})
        span.links.append(Place.of(reply.trace_id, reply.traceparent))


def note_cut(scope: Scope, code: str, *, failed: bool) -> None:
    """The answer was cut after its status had gone out; `failed` unless it was the client that left."""
    span: Span | None = scope.get("state", {}).get(_STATE)
    if span is not None:
        span.failed, span.error = failed, code


def end_exchange(scope: Scope, status: int, *, left: bool) -> None:
    """The answer has gone out, or the client has `left` before that."""
    span: Span | None = scope["state"].pop(_STATE, None)
    if span is None:
        return
    span.note({"http.response.status_code": status})
    if status >= 500:
        span.failed, span.error = True, span.error or str(status)
    elif left:
        span.error = CLIENT_LEFT
    emit(span)
