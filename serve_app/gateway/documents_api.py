"""Documents by API: what a project knows for x_route=rag. A document is stored at once and chunked by Dagster soon after."""

import base64
import binascii
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve_app.documents import API_SOURCE, Change, DocumentEntry
from serve_app.errors import BadRequest, BodyTooLarge, NotFound, Unavailable
from serve_app.gateway.asks import Caller
from serve_app.gateway.exchange import caller_of
from serve_app.gateway.http_app import GatewayState, OrjsonResponse, read_body, state_of
from serve_app.gateway.intake import Upload
from serve_app.gateway.metering import enter
from serve_app.gateway.schema import DocumentRequest, check, parse_object
from serve_app.parsers import SUFFIXES, Bounds, Kind, kind_of
from serve_app.rag import chunking_for
from serve_app.telemetry import logger

router = APIRouter()
_ENVELOPE_BYTES = 65_536  # what stands around the file in a request
_PAGE = 20
_LARGEST_PAGE = 100


@router.post("/v1/documents")
async def add_document(request: Request) -> Response:
    """Store a document. A document of the same name is replaced: its old chunks serve until the new ones are there."""
    state = state_of(request)
    caller = await caller_of(request, state)
    bounds = Bounds.of(state.settings)
    raw = await read_body(request, bounds.most_bytes * 4 // 3 + _ENVELOPE_BYTES)
    upload = await _upload(request, raw)
    project = caller.acting_for(upload.project)
    await enter(request, state, caller, project)
    if len(upload.raw) > bounds.most_bytes:
        raise BodyTooLarge(f"the document is over {bounds.most_bytes} bytes (setting document_max_bytes)")
    text = await state.intake.text_of(upload, bounds)
    documents, made_with = state.lifecycle.documents, _made_with(state)
    try:
        change = await documents.put(project, API_SOURCE, upload.name, text)
    except ValueError as error:
        raise BadRequest(str(error), param="file", code="invalid_value") from error
    entry = await documents.entry_at(project, API_SOURCE, upload.name, made_with=made_with)
    if entry is None:
        raise Unavailable("the document was deleted while it was being stored; retry")
    logger.info("document stored", document_id=entry.document_id, change=change.value, bytes=entry.size)
    status = 200 if entry.ready and change is Change.UNCHANGED else 202
    return OrjsonResponse(_shown(entry), status_code=status, headers={"location": f"/v1/documents/{entry.document_id}"})


@router.get("/v1/documents")
async def list_documents(request: Request) -> Response:
    """A page of the project's documents, in the order they came."""
    state = state_of(request)
    project = _project(request, await caller_of(request, state))
    limit, after = _limit(request), request.query_params.get("after")
    made_with = _made_with(state)
    entries = await state.lifecycle.documents.entries(project, after=after, limit=limit + 1, made_with=made_with)
    page = [_shown(entry) for entry in entries[:limit]]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return OrjsonResponse({"object": "list", "data": page, **ends, "has_more": len(entries) > limit})


@router.get("/v1/documents/{document_id}")
async def get_document(request: Request, document_id: str) -> Response:
    state = state_of(request)
    project = _project(request, await caller_of(request, state))
    entry = await state.lifecycle.documents.entry(project, document_id, made_with=_made_with(state))
    if entry is None:
        raise _unknown(document_id)
    return OrjsonResponse(_shown(entry))


@router.delete("/v1/documents/{document_id}")
async def delete_document(request: Request, document_id: str) -> Response:
    """Forget a document, its chunks, and the cached answers that may rest on it, at once."""
    state = state_of(request)
    project = _project(request, await caller_of(request, state))
    if not await state.lifecycle.documents.delete(project, document_id):
        raise _unknown(document_id)
    return OrjsonResponse({"id": document_id, "object": "document", "deleted": True})


async def _upload(request: Request, raw: bytes) -> Upload:
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _of_form(request, raw)
    parsed = check(DocumentRequest, parse_object(raw))
    if (parsed.text is None) == (parsed.content is None):
        raise BadRequest("send either 'text', or 'content' (base64) with its 'media_type'", param="text", code="invalid_value")
    if parsed.text is not None:
        # Text needs no suffix in its name; a media type that is no text would be a mistake.
        kind = kind_of(parsed.name, parsed.media_type) if parsed.media_type else Kind.TEXT
        return _named(parsed.name, kind, parsed.text.encode("utf-8", "replace"), parsed.x_project)
    try:
        content = base64.b64decode(parsed.content or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"'content' is not base64: {error}", param="content", code="invalid_value") from error
    return _named(parsed.name, kind_of(parsed.name, parsed.media_type), content, parsed.x_project)


async def _of_form(request: Request, raw: bytes) -> Upload:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield raw

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        told = getattr(error, "message", None) or str(error)
        raise BadRequest(f"the form cannot be read: {told}", code="invalid_form") from error
    try:
        unknown = set(form) - {"file", "name", "purpose", "x_project"}
        if unknown:
            raise BadRequest(f"unknown form field {min(unknown)!r}; known: file, name, x_project", code="unknown_parameter")
        file, name, project = form.get("file"), form.get("name"), form.get("x_project")
        if not isinstance(file, UploadFile):
            raise BadRequest("missing form field 'file'", param="file", code="missing_required_parameter")
        content = await file.read()
    finally:
        await form.close()
    called = str(name or file.filename or "")
    kind = kind_of(file.filename or called, file.content_type)
    return _named(called, kind, content, str(project) if project else None)


def _named(name: str, kind: Kind | None, raw: bytes, project: str | None) -> Upload:
    name = name.strip()
    if not 1 <= len(name) <= 512 or not name.isprintable():
        raise BadRequest("a document needs a name of 1 to 512 printable characters", param="name", code="invalid_value")
    if kind is None:
        known = f"send {', '.join(kind.value for kind in Kind)}, or a name that ends in {', '.join(SUFFIXES)}"
        raise BadRequest(f"{name!r} is of no kind that can be read: {known}", param="media_type", code="unsupported")
    return Upload(name, kind, raw, project)


def _made_with(state: GatewayState) -> str:
    embedder, settings = state.lifecycle.embedder, state.settings
    if embedder is None:
        raise Unavailable("documents need the embedding model, and this gateway has none")
    chunking = chunking_for(embedder, max_tokens=settings.chunk_tokens, overlap=settings.chunk_overlap_tokens)
    return chunking.made_with(embedder)


def _project(request: Request, caller: Caller) -> str:
    return caller.acting_for(request.query_params.get("x_project"))


def _limit(request: Request) -> int:
    told = request.query_params.get("limit", str(_PAGE))
    if not (told.isascii() and told.isdigit() and 1 <= int(told[:6]) <= _LARGEST_PAGE):
        raise BadRequest(f"limit must be 1 to {_LARGEST_PAGE}, got {told!r}", param="limit", code="invalid_value")
    return int(told)


def _unknown(document_id: str) -> NotFound:
    return NotFound(f"document {document_id!r} does not exist in your project", param="document_id", code="document_not_found")


def _shown(entry: DocumentEntry) -> dict[str, Any]:
    return {
        "id": entry.document_id,
        "object": "document",
        "name": entry.source_path,
        "source": entry.source,
        "bytes": entry.size,
        "created_at": int(entry.created_at),
        "updated_at": int(entry.updated_at),
        "status": "ready" if entry.ready else "pending",
    }
