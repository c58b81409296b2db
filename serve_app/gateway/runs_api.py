"""Runs by name: what became of one, its events again, and stopping it. Only inside the caller's projects."""

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve_app.errors import BadRequest, NotFound
from serve_app.gateway.exchange import caller_of, streamed
from serve_app.gateway.http_app import OrjsonResponse, state_of
from serve_app.gateway.sse import DONE
from serve_app.ports import RunRecord
from serve_app.runs import RunStatus

router = APIRouter()


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
            "timings": _timings(row),
            "usage": row.usage,
            "winner": answer.winner if answer else None,
            "debate": answer.debate.facts() if answer and answer.debate else None,
            "rag": answer.rag.facts(sources=True) if answer and answer.rag else None,
            "error": row.error,
            "dagster_run_id": row.dagster_run_id,
            "traceparent": row.traceparent,
        },
        headers={"x-trace-id": row.trace_id, "x-route": row.route},
    )


@router.get("/v1/runs/{trace_id}/events")
async def run_events(request: Request, trace_id: str) -> Response:
    state = state_of(request)
    row = await _run(request, trace_id)
    after = _after(request)
    if row.status.terminal and await state.lifecycle.read_to_the_end(row, after):
        # Only [DONE] was lost, or the error that ended the stream has been read.
        frames = [DONE] if row.status is RunStatus.SUCCEEDED else []
        return Response(b"".join(frames), media_type="text/event-stream", headers={"x-trace-id": row.trace_id})
    reply = await state.lifecycle.attach(row, after=after)
    return await streamed(request, reply, include_usage=True, drafts=True)


@router.post("/v1/runs/{trace_id}/cancel")
async def cancel_run(request: Request, trace_id: str) -> Response:
    row = await _run(request, trace_id)
    await state_of(request).lifecycle.cancel(row, "cancelled by the caller")
    status = row.status.value if row.status.terminal else "cancelling"
    return OrjsonResponse(
        {"object": "run", "trace_id": row.trace_id, "status": status}, status_code=200 if row.status.terminal else 202
    )


async def _run(request: Request, trace_id: str) -> RunRecord:
    state = state_of(request)
    caller = await caller_of(request, state)
    named = re.fullmatch(r"[0-9a-f]{32}", trace_id) is not None
    for project in dict.fromkeys((caller.project, *caller.projects)) if named else ():
        row = await state.lifecycle.store.find(trace_id, project=project)
        if row is not None:
            return row
    raise NotFound(f"run {trace_id!r} does not exist in your project", param="trace_id", code="run_not_found")


def _timings(row: RunRecord) -> dict[str, float | None]:
    """When the run was claimed and when its end was recorded, Unix seconds, and how long that took; null while it runs."""
    finished_at = row.updated_at if row.status.terminal else None  # the end is the last thing that touches a row
    seconds = None if finished_at is None else finished_at - row.created_at
    return {"created_at": row.created_at, "finished_at": finished_at, "seconds": seconds}


def _after(request: Request) -> int:
    last = request.headers.get("last-event-id") or request.query_params.get("after")
    if last is None or last == "-1":
        return -1
    if not (last.isascii() and last.isdigit() and len(last) <= 12):
        raise BadRequest(f"Last-Event-ID (or ?after=) must be a number, got {last!r}", param="after", code="invalid_value")
    return int(last)
