"""The double of the documents' store: in memory, one process, nothing survives it. See memory.py."""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import uuid4

from serve_app.documents import NO_CORPUS, Audit, Change, Chunk, Document, DocumentEntry, Hit, content_hash
from serve_app.errors import Overloaded
from serve_app.store.documents import check_document
from serve_app.store.memory import InMemoryAnswerCache

_MOST: Final = 100_000  # documents
_WORD: Final = re.compile(r"[\w-]{3,}")  # Postgres knows stop words and stems; here short words are no words


@dataclass(frozen=True, slots=True)
class _Entry:
    document: Document
    chunks: tuple[Chunk, ...] = ()
    chunked_hash: str | None = None
    chunked_with: str | None = None
    created_at: float = field(default_factory=time.time)
    updated_at: float = field(default_factory=time.time)

    def is_stale(self, made_with: str) -> bool:
        return (self.chunked_hash, self.chunked_with) != (self.document.content_hash, made_with)


class InMemoryDocuments:
    """Documents in memory. Refuses more than a fixed number of them with errors.Overloaded.

    `cache`: where the answers are that rest on these documents.
    """

    def __init__(self, cache: InMemoryAnswerCache | None = None) -> None:
        self._cache = cache
        self._entries: dict[str, _Entry] = {}  # by document_id, in the order they came
        self._corpora: dict[str, str] = {}  # by project

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
        self._entries[document.document_id] = replace(entry, document=document, updated_at=time.time())
        return Change.CHANGED

    async def remove(self, project: str, source: str, source_paths: Sequence[str]) -> int:
        """See documents.Documents."""
        held = self._of_source(project, source)
        going = [held[path] for path in set(source_paths) if path in held]
        for entry in going:
            del self._entries[entry.document.document_id]
        if going:
            self._change_corpus(project)
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
        entry = self._entries[now.document_id]
        self._entries[now.document_id] = replace(
            entry, chunks=tuple(chunks), chunked_hash=now.content_hash, chunked_with=made_with
        )
        self._change_corpus(now.project)
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

    async def entry(self, project: str, document_id: str, *, made_with: str) -> DocumentEntry | None:
        """See documents.Documents."""
        found = await self.find(project, document_id)
        return None if found is None else _listed(self._entries[document_id], made_with)

    async def entry_at(self, project: str, source: str, source_path: str, *, made_with: str) -> DocumentEntry | None:
        """See documents.Documents."""
        found = self._of_source(project, source).get(source_path)
        return None if found is None else _listed(found, made_with)

    async def entries(self, project: str, *, after: str | None, limit: int, made_with: str) -> list[DocumentEntry]:
        """See documents.Documents."""
        held = [_listed(entry, made_with) for entry in self._of_project(project)]
        if after is not None:
            place = next((number for number, entry in enumerate(held) if entry.document_id == after), len(held))
            held = held[place + 1 :]
        return held[:limit]

    async def delete(self, project: str, document_id: str) -> bool:
        """See documents.Documents."""
        if await self.find(project, document_id) is None:
            return False
        del self._entries[document_id]
        self._change_corpus(project)
        return True

    async def stale_projects(self, *, made_with: str, limit: int) -> dict[str, str]:
        """See documents.Documents."""
        waiting: dict[str, str] = {}
        for entry in self._entries.values():
            if entry.is_stale(made_with):
                project = entry.document.project
                waiting[project] = hashlib.sha256((waiting.get(project, "") + entry.document.content_hash).encode()).hexdigest()
        return dict(list(waiting.items())[:limit])

    async def corpus(self, project: str) -> str:
        """See documents.Documents."""
        return self._corpora.get(project, NO_CORPUS)

    async def search(self, project: str, question: str, embedding: Sequence[float], *, limit: int) -> list[Hit]:
        """See documents.Documents. Words are compared as they stand."""
        asked = set(_WORD.findall(question.lower()))
        hits = [
            Hit(
                document_id=entry.document.document_id,
                source_path=entry.document.source_path,
                ordinal=ordinal,
                content=chunk.content,
                tokens=chunk.tokens,
                similarity=_cosine(chunk.embedding, embedding),
                coverage=len(asked & set(_WORD.findall(chunk.content.lower()))) / max(1, len(asked)),
            )
            for entry in self._of_project(project)
            for ordinal, chunk in enumerate(entry.chunks)
        ]
        place = {(hit.document_id, hit.ordinal): hit for hit in hits}
        near = sorted((h for h in hits if h.similarity > -1), key=lambda h: -h.similarity)[:limit]
        worded = sorted((h for h in hits if h.coverage > 0), key=lambda h: -h.coverage)[:limit]
        for rank, hit in enumerate(near, 1):
            place[hit.document_id, hit.ordinal] = replace(hit, meaning_rank=rank)
        for rank, hit in enumerate(worded, 1):
            place[hit.document_id, hit.ordinal] = replace(place[hit.document_id, hit.ordinal], words_rank=rank)
        return [hit for hit in place.values() if hit.meaning_rank is not None or hit.words_rank is not None]

    def _change_corpus(self, project: str) -> None:
        self._corpora[project] = str(uuid4())
        if self._cache is not None:
            self._cache.take_corpus(project, self._corpora[project])

    def _of_project(self, project: str) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.document.project == project]

    def _of_source(self, project: str, source: str) -> dict[str, _Entry]:
        return {e.document.source_path: e for e in self._of_project(project) if e.document.source == source}


def _listed(entry: _Entry, made_with: str) -> DocumentEntry:
    document = entry.document
    return DocumentEntry(
        document_id=document.document_id,
        source=document.source,
        source_path=document.source_path,
        size=len(document.content.encode()),
        created_at=entry.created_at,
        updated_at=entry.updated_at,
        ready=not entry.is_stale(made_with),
    )


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Of unit vectors; below every cosine for vectors of different length."""
    return sum(a * b for a, b in zip(left, right, strict=True)) if len(left) == len(right) else -2.0
