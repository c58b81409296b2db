"""What a project knows: documents and their chunks, and the port to where they are kept."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Change(StrEnum):
    """What became of a document that was put."""

    ADDED = "added"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a project. `source` says where it came from, `source_path` which text it is there."""

    document_id: str
    project: str
    source: str
    source_path: str
    content: str
    content_hash: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document: `content` stands at [start, end) of the document's, in characters."""

    content: str
    start: int
    end: int
    tokens: int
    embedding: Sequence[float]


@dataclass(frozen=True, slots=True)
class Audit:
    """A project's knowledge in numbers. `stale` documents are not chunked yet, `misfits` have a vector of another length."""

    documents: int
    chunks: int
    stale: int
    orphans: int
    misfits: int


def content_hash(content: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class Documents(Protocol):
    """Documents and chunks. A project sees its own alone. Every method raises errors.Unavailable when the database is away."""

    async def known(self, project: str, source: str) -> dict[str, str]:
        """Every document of a source: source_path to content hash."""
        ...

    async def put(self, project: str, source: str, source_path: str, content: str) -> Change:
        """Store a document, and its project if that is new. The same content again changes nothing.

        Chunks of an earlier content stay until replace_chunks. Raises ValueError for a name that no project may have,
        and for content with the character U+0000.
        """
        ...

    async def remove(self, project: str, source: str, source_paths: Sequence[str]) -> int:
        """Forget documents and their chunks; how many documents that were."""
        ...

    async def find(self, project: str, document_id: str) -> Document | None:
        """One document of the project."""
        ...

    async def stale(self, project: str, *, made_with: str, limit: int) -> list[str]:
        """Ids of documents without chunks of their present content made in this way, at most `limit`."""
        ...

    async def replace_chunks(self, document: Document, chunks: Sequence[Chunk], *, made_with: str) -> bool:
        """Put these in the place of the document's chunks, in one transaction.

        False when the document is gone or has another content by now: nothing is written.
        """
        ...

    async def audit(self, project: str, *, made_with: str, dimensions: int) -> Audit:
        """Count what there is, and what is not as it should be."""
        ...
