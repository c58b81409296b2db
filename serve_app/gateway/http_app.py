"""The FastAPI application: routes, error shape, request ids, body limit."""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import AifactoryError, BodyTooLarge, KeyReused, Overloaded, QuotaExhausted
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.exchange_span import end_exchange
from serve_app.gateway.intake import Intake
from serve_app.lifecycle.handle import Lifecycle
from serve_app.limits import Meter
from serve_app.settings import Settings
from serve_app.telemetry import count, logger

Probe = Callable[[], Awaitable[Mapping[str, str]]]
# Cancelling must work when all is full.
_LIMITED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/documents"})
CLIENT_LEFT = 499
RETRY_AFTER_MAX_S = 120  # the OpenAI SDKs do not retry at all past this


class OrjsonResponse(JSONResponse):
    """JSON written by orjson."""

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


@dataclass(slots=True)
class GatewayState:
    """What the routes work with. `probe` says for each part `ok` or what is wrong with it."""

    settings: Settings
    lifecycle: Lifecycle
    auth: Authenticator
    probe: Probe
    started: int  # Unix seconds
    meter: Meter
    intake: Intake = field(default_factory=Intake)


def build_http_app(
    state: GatewayState,
    *,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application around `state`; `lifespan` closes what the state holds.

    `echo_request_id` false: the server around the application answers with x-request-id itself (Ray Serve does).
    """
    from serve_app.gateway.routes import router

    app = FastAPI(title="aifactory", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.gateway = state
    app.include_router(router)
    app.add_middleware(RequestMiddleware, echo=echo_request_id, limit=state.settings.gateway_max_ongoing_requests)
    app.add_exception_handler(AifactoryError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


def state_of(request: Request) -> GatewayState:
    state: GatewayState = request.app.state.gateway
    return state


def error_response(error: AifactoryError, headers: Mapping[str, str] | None = None) -> Response:
    """The error in OpenAI's shape, with the headers that tell an SDK whether to retry."""
    extra = dict(headers or {})
    if error.retryable and error.status in (429, 503):
        extra["retry-after"] = str(max(1, min(RETRY_AFTER_MAX_S, math.ceil(error.retry_after_s or 1))))
    if isinstance(error, (KeyReused, QuotaExhausted)) or (error.status >= 500 and not error.retryable):
        extra["x-should-retry"] = "false"  # the SDK would try every 5xx again
    return OrjsonResponse({"error": error.body()}, status_code=error.status, headers=extra)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes. Raises BodyTooLarge before reading more."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


class RequestMiddleware:
    """Gives every exchange its x-request-id, counts it, and turns a bug into a clean 500.

    More than `limit` exchanges at once are refused with 429 on the paths that cost something, so that the accepted
    ones keep their latency and nothing waits without bound.
    """

    def __init__(self, app: ASGIApp, *, echo: bool, limit: int) -> None:
        self._app = app
        self._echo = echo
        self._limit = limit
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id", b"")
        # Echoed into a header and the log: only what is harmless there.
        request_id = (
            sent.decode("latin-1")
            if 0 < len(sent) <= 200 and sent.isascii() and sent.decode().isprintable()
            else uuid.uuid4().hex
        )
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                own = dict(scope["state"].get("limit_headers") or {})  # see gateway.metering
                if self._echo:
                    own["x-request-id"] = request_id
                message["headers"] = [*message["headers"], *((k.encode(), v.encode("latin-1")) for k, v in own.items())]
            await send(message)

        begun = time.monotonic()
        self._in_flight += 1
        try:
            if self._in_flight > self._limit and scope["path"] in _LIMITED:
                full = Overloaded(f"this gateway answers {self._limit} requests already; retry shortly", retry_after_s=1)
                await error_response(full)(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except (ClientDisconnect, asyncio.CancelledError):
            status = status if started else CLIENT_LEFT
            raise
        except Exception as error:
            logger.opt(exception=error).error("request broke", path=scope["path"], request_id=request_id)
            if started:
                raise
            response = error_response(AifactoryError(f"internal error; the log has the cause under request id {request_id}"))
            await response(scope, receive, send_with_id)
        finally:
            self._in_flight -= 1
            path = getattr(scope.get("route"), "path", "unknown")
            count("aifactory_requests_total", path=path, status=str(status))
            end_exchange(scope, status, left=status == CLIENT_LEFT)
            logger.debug("request", path=path, status=status, seconds=round(time.monotonic() - begun, 4), request_id=request_id)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AifactoryError)
    headers: dict[str, Any] = getattr(request.state, "error_headers", {})
    return error_response(error, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"no such path: {request.method} {request.url.path}"
    elif error.status_code == 405:
        message = f"method {request.method} is not allowed for {request.url.path}"
    else:
        message = str(error.detail)
    body = {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found" if error.status_code == 404 else None,
    }
    return OrjsonResponse({"error": body}, status_code=error.status_code, headers=error.headers)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is over {limit} bytes (setting max_body_bytes)")
