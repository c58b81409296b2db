"""What a project knows: documents and their chunks, and the port to where they are kept."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

API_SOURCE: Final = "api"  # of documents that were sent over the API; a folder's source is its absolute path
NO_CORPUS: Final = "none"  # the version of what a project knows that never had a document


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


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """A document as it is listed. `ready`: its chunks are those of its present content. Times are Unix seconds."""

    document_id: str
    source: str
    source_path: str
    size: int  # bytes of its text in UTF-8
    created_at: float
    updated_at: float
    ready: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a search found. Ranks count from 1; None where that way of searching did not find it.

    `similarity` is the cosine to the question, `coverage` the share of the question's words that stand in the chunk;
    both are there whichever way found it.
    """

    document_id: str
    source_path: str
    ordinal: int
    content: str
    tokens: int
    similarity: float
    coverage: float
    meaning_rank: int | None = None
    words_rank: int | None = None


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
        """Forget documents, their chunks and the cached answers of the corpus; how many documents that were."""
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

    async def entry(self, project: str, document_id: str, *, made_with: str) -> DocumentEntry | None:
        """How one document of the project stands. `made_with` as for stale."""
        ...

    async def entry_at(self, project: str, source: str, source_path: str, *, made_with: str) -> DocumentEntry | None:
        """The same, found by where it came from."""
        ...

    async def entries(self, project: str, *, after: str | None, limit: int, made_with: str) -> list[DocumentEntry]:
        """The project's documents in the order they came, from behind the one with id `after`."""
        ...

    async def delete(self, project: str, document_id: str) -> bool:
        """Forget one document, its chunks and the cached answers of the project's corpus. False when there is none."""
        ...

    async def stale_projects(self, *, made_with: str, limit: int) -> dict[str, str]:
        """Projects with stale documents; each with a text that is the same as long as the same contents wait."""
        ...

    async def corpus(self, project: str) -> str:
        """The version of what the project knows: another one after every change to a chunk, NO_CORPUS before the first.

        A change also removes the cached answers that rest on the version before.
        """
        ...

    async def search(self, project: str, question: str, embedding: Sequence[float], *, limit: int) -> list[Hit]:
        """The chunks nearest to `embedding` and those that share words with `question`, at most `limit` of each."""
        ...
