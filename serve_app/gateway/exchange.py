"""What every route of the gateway does the same way: who calls, is the client still there, how a reply is sent."""

import asyncio
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from serve_app.errors import AifactoryError
from serve_app.events import RunEvent
from serve_app.gateway.asks import Caller
from serve_app.gateway.http_app import CLIENT_LEFT, GatewayState, OrjsonResponse, error_response, state_of
from serve_app.gateway.sse import EventStream, Reader, Renderer, collect
from serve_app.lifecycle.reply import Reply


async def caller_of(request: Request, state: GatewayState) -> Caller:
    return await state.auth.caller(request.headers.get("authorization"))


async def whole(request: Request, reply: Reply) -> Response:
    reader = Reader(reply)
    try:
        body = await unless_left(request, collect(reader))
    finally:
        await reader.close()
    if body is None:
        return Response(status_code=CLIENT_LEFT)
    return OrjsonResponse(body, headers=headers_of(reply))


async def streamed(request: Request, reply: Reply, *, include_usage: bool, drafts: bool) -> Response:
    reader = Reader(reply)
    keepalive_s = state_of(request).settings.keepalive_s
    try:
        # The client may leave before there is anything to send it. A provisional answer is there at once.
        waited = (None,) if reply.provisional else await unless_left(request, _first(reader, keepalive_s))
    except AifactoryError as error:
        await reader.close()
        return error_response(error, headers_of(reply))
    except BaseException:
        await reader.close()
        raise
    if waited is None:
        await reader.close()
        return Response(status_code=CLIENT_LEFT)
    headers = headers_of(reply)
    if not state_of(request).lifecycle.bus.resumable:
        headers["x-resume"] = "unavailable"
    renderer = Renderer(reply, include_usage=include_usage, drafts=drafts)
    return EventStream(reader, waited[0], renderer, keepalive_s=keepalive_s, headers=headers)


async def _first(reader: Reader, patience_s: float) -> tuple[RunEvent | None]:
    return (await reader.first(patience_s),)


async def unless_left(request: Request, work: Any) -> Any:
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


def headers_of(reply: Reply) -> dict[str, str]:
    headers = {"x-trace-id": reply.trace_id, "x-route": reply.route, "x-cache": reply.cache.result}
    if reply.cache.similarity is not None:
        headers["x-cache-similarity"] = f"{reply.cache.similarity:.4f}"
    near = reply.provisional
    if near is not None:
        headers["x-cache-similarity"] = f"{near.hit.similarity:.4f}"
    if near is not None or reply.cache.provisional:
        headers["x-cache-provisional"] = "true"
    if reply.replayed:
        headers["idempotent-replayed"] = "true"
    return headers
