"""The double of the documents' store: in memory, one process, nothing survives it. See memory.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

from serve_app.documents import Audit, Change, Chunk, Document, content_hash
from serve_app.errors import Overloaded
from serve_app.store.documents import check_document

_MOST: Final = 100_000  # documents


@dataclass(frozen=True, slots=True)
class _Entry:
    document: Document
    chunks: tuple[Chunk, ...] = ()
    chunked_hash: str | None = None
    chunked_with: str | None = None

    def is_stale(self, made_with: str) -> bool:
        return (self.chunked_hash, self.chunked_with) != (self.document.content_hash, made_with)


class InMemoryDocuments:
    """Documents in memory. Refuses more than a fixed number of them with errors.Overloaded."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}  # by document_id

    async def known(self, project: str, source: str) -> dict[str, str]:
        """See documents.Documents."""
        return {path: entry.document.content_hash for path, entry in self._of_source(project, source).items()}

    async def put(self, project: str, source: str, source_path: str, content: str) -> Change:
        """See documents.Documents."""
        check_document(project, content)
        entry = self._of_source(project, source).get(source_path)
        now = content_hash(content)
        if entry is None:
            if len(self._entries) >= _MOST:
                raise Overloaded(f"this store holds {_MOST} documents and takes no more")
            document = Document(str(uuid4()), project, source, source_path, content, now)
            self._entries[document.document_id] = _Entry(document)
            return Change.ADDED
        if entry.document.content_hash == now:
            return Change.UNCHANGED
        document = replace(entry.document, content=content, content_hash=now)
        self._entries[document.document_id] = replace(entry, document=document)
        return Change.CHANGED

    async def remove(self, project: str, source: str, source_paths: Sequence[str]) -> int:
        """See documents.Documents."""
        held = self._of_source(project, source)
        going = [held[path] for path in set(source_paths) if path in held]
        for entry in going:
            del self._entries[entry.document.document_id]
        return len(going)

    async def find(self, project: str, document_id: str) -> Document | None:
        """See documents.Documents."""
        entry = self._entries.get(document_id)
        return entry.document if entry is not None and entry.document.project == project else None

    async def stale(self, project: str, *, made_with: str, limit: int) -> list[str]:
        """See documents.Documents."""
        found = [entry.document.document_id for entry in self._of_project(project) if entry.is_stale(made_with)]
        return found[:limit]

    async def replace_chunks(self, document: Document, chunks: Sequence[Chunk], *, made_with: str) -> bool:
        """See documents.Documents."""
        now = await self.find(document.project, document.document_id)
        if now is None or now.content_hash != document.content_hash:
            return False
        self._entries[now.document_id] = _Entry(now, tuple(chunks), now.content_hash, made_with)
        return True

    async def audit(self, project: str, *, made_with: str, dimensions: int) -> Audit:
        """See documents.Documents."""
        entries = self._of_project(project)
        chunks = [chunk for entry in entries for chunk in entry.chunks]
        return Audit(
            documents=len(entries),
            chunks=len(chunks),
            stale=sum(entry.is_stale(made_with) for entry in entries),
            orphans=0,  # a chunk lives in its document's entry
            misfits=sum(len(chunk.embedding) != dimensions for chunk in chunks),
        )

    def _of_project(self, project: str) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.document.project == project]

    def _of_source(self, project: str, source: str) -> dict[str, _Entry]:
        return {e.document.source_path: e for e in self._of_project(project) if e.document.source == source}
