"""Knowledge, pure over ports: cut a text into chunks, and keep a project's chunks up to its documents.

A chunk holds whole paragraphs where they fit, whole sentences where a paragraph does not, and parts of a sentence
where even that does not. A chunk begins with the last sentences of the one before it, so that what was said across a
border is found too.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from serve_app.documents import Chunk, Document, Documents
from serve_app.ports import Embedder

# Counts for as many tokens as it has; a tokenizer may take a long word that it does not know for a single token.
_CHARS_PER_TOKEN: Final = 8
_VERSION: Final = 1  # of the way that texts are cut: count it up, and every document is chunked anew
_EMBED_AT_ONCE: Final = 64
_STALE_AT_ONCE: Final = 500

_PARAGRAPH_END: Final = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?…])\s+|\n\s*|(?<=[。！？])")  # noqa: RUF001 - ends of Chinese sentences
_HEADING: Final = re.compile(r"#{1,6} [^\n]*")


@dataclass(frozen=True, slots=True)
class Passage:
    """The part [start, end) of a text, in characters, and its length in tokens."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Chunking:
    """How texts are cut: tokens of a chunk at most, and tokens that it may share with the one before it."""

    max_tokens: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.max_tokens:
            raise ValueError(f"chunks of {self.max_tokens} tokens cannot share {self.overlap}: the overlap must be smaller")

    def made_with(self, embedder: Embedder) -> str:
        """Names all that the chunks of a content depend on: when it changes, documents are stale."""
        return f"{embedder.model_id}/{embedder.dimensions}/{self.max_tokens}-{self.overlap}/v{_VERSION}"


def chunking_for(embedder: Embedder, *, max_tokens: int, overlap: int) -> Chunking:
    """The wanted sizes, as far as the model can read; its special tokens are not counted."""
    most = embedder.max_tokens - embedder.count_tokens("")
    return Chunking(min(max_tokens, most), min(overlap, max(0, most - 1)))


def chunk(text: str, count_tokens: Callable[[str], int], *, max_tokens: int, overlap: int) -> list[Passage]:
    """Passages that together hold all of the text but blanks at borders, in order.

    None has more than `max_tokens` tokens, special tokens not counted, or more than 8 characters for each of them.
    A paragraph (and a heading with the paragraph after it) is cut only when it is longer than a chunk by itself.
    """
    special = count_tokens("")

    def count(start: int, end: int) -> int:
        return max(1, count_tokens(text[start:end]) - special)

    pieces = list(_pieces(text, count, max_tokens))
    passages: list[Passage] = []
    fresh = 0
    while fresh < len(pieces):
        first = _start_of_chunk(pieces, fresh, max_tokens, overlap)
        end = _end_of_chunk(pieces, first, fresh, max_tokens)
        passage = _joined(pieces[first:end], count)
        while passage.tokens > max_tokens:
            # Pieces are counted one by one; together they can be a little more.
            first, end = (first + 1, end) if first < fresh else (first, end - 1)
            passage = _joined(pieces[first:end], count)
        passages.append(passage)
        fresh = end
    return passages


async def chunks_of(document: Document, embedder: Embedder, chunking: Chunking) -> list[Chunk]:
    """The document's chunks, embedded. Raises errors.Overloaded when too much waits for the embedder already."""
    text = document.content
    passages = chunk(text, embedder.count_tokens, max_tokens=chunking.max_tokens, overlap=chunking.overlap)
    chunks: list[Chunk] = []
    for first in range(0, len(passages), _EMBED_AT_ONCE):
        part = passages[first : first + _EMBED_AT_ONCE]
        vectors = await embedder.embed([text[p.start : p.end] for p in part])
        chunks += [
            Chunk(text[p.start : p.end], p.start, p.end, p.tokens, vector) for p, vector in zip(part, vectors, strict=True)
        ]
    return chunks


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was chunked and embedded again."""

    documents: int
    chunks: int


async def refresh_chunks(documents: Documents, embedder: Embedder, project: str, chunking: Chunking) -> Refreshed:
    """Chunk and embed the stale documents of a project, one after the other, each in its own transaction.

    Whatever ends it half-way, the next call goes on with what is left. A document that is changed or removed meanwhile
    is left to that call too.
    """
    made_with = chunking.made_with(embedder)
    done = made = 0
    late: set[str] = set()
    while True:
        stale = await documents.stale(project, made_with=made_with, limit=_STALE_AT_ONCE + len(late))
        todo = [document_id for document_id in stale if document_id not in late]
        if not todo:
            return Refreshed(done, made)
        for document_id in todo:
            document = await documents.find(project, document_id)
            chunks = await chunks_of(document, embedder, chunking) if document is not None else []
            if document is None or not await documents.replace_chunks(document, chunks, made_with=made_with):
                late.add(document_id)
                continue
            done += 1
            made += len(chunks)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is not cut any further. `opens` says whether a chunk should rather begin here than be cut after it."""

    start: int
    end: int
    tokens: int
    opens: bool


def _pieces(text: str, count: Callable[[int, int], int], most: int) -> Iterator[_Piece]:
    """Sentences, or parts of sentences that are too long, in order. The first of each paragraph `opens`."""
    after_heading = False
    for start, end in _split(text, 0, len(text), _PARAGRAPH_END):
        opens = not after_heading
        for left, right in _split(text, start, end, _SENTENCE_END):
            for piece_start, piece_end, tokens in _short(text, left, right, count, most):
                yield _Piece(piece_start, piece_end, tokens, opens)
                opens = False
        after_heading = _HEADING.fullmatch(text, start, end) is not None


def _split(text: str, start: int, end: int, border: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The parts of text[start:end] between borders, without blanks at their ends, and without empty ones."""
    marks = [(start, start), *((m.start(), m.end()) for m in border.finditer(text, start, end)), (end, end)]
    for (_, left), (right, _) in pairwise(marks):
        part = text[left:right]
        left += len(part) - len(part.lstrip())
        right -= len(part) - len(part.rstrip())
        if left < right:
            yield left, right


def _short(text: str, start: int, end: int, count: Callable[[int, int], int], most: int) -> Iterator[tuple[int, int, int]]:
    """The part cut in halves, at a blank if there is one near the middle, until each half fits into a chunk."""
    waiting = [(start, end)]
    while waiting:
        left, right = waiting.pop()
        if right - left <= most * _CHARS_PER_TOKEN:
            tokens = count(left, right)
            if tokens <= most or right - left == 1:
                yield left, right, min(tokens, most)
                continue
        middle = (left + right) // 2
        blank = max(text.rfind(" ", left + 1, middle), text.rfind("\t", left + 1, middle))
        cut = blank if blank > (left + middle) // 2 else middle
        waiting += reversed(list(_split_at(text, left, cut, right)))


def _split_at(text: str, left: int, cut: int, right: int) -> Iterator[tuple[int, int]]:
    for start, end in ((left, cut), (cut, right)):
        part = text[start:end]
        start += len(part) - len(part.lstrip())
        end -= len(part) - len(part.rstrip())
        if start < end:
            yield start, end


def _start_of_chunk(pieces: list[_Piece], fresh: int, most: int, overlap: int) -> int:
    """Where a chunk that is to hold piece `fresh` begins: as far back as `overlap` allows and what must be whole leaves room."""
    paragraph = _paragraph_tokens(pieces, fresh, most) if pieces[fresh].opens else 0
    room = min(overlap, most - (paragraph or pieces[fresh].tokens))
    chars = pieces[fresh].end - most * _CHARS_PER_TOKEN
    first = fresh
    while first > 0 and pieces[first - 1].tokens <= room and pieces[first - 1].start >= chars:
        first -= 1
        room -= pieces[first].tokens
    return first


def _end_of_chunk(pieces: list[_Piece], first: int, fresh: int, most: int) -> int:
    """Where it ends: it takes what fits, but cuts no paragraph that the next chunk can take whole."""
    end, room = first, most
    chars = pieces[first].start + most * _CHARS_PER_TOKEN
    while end < len(pieces) and pieces[end].tokens <= room and pieces[end].end <= chars:
        room -= pieces[end].tokens
        end += 1
    if end == len(pieces) or pieces[end].opens:
        return end
    opening = next((at for at in range(end - 1, fresh, -1) if pieces[at].opens), None)
    return opening if opening is not None and _paragraph_tokens(pieces, opening, most) else end


def _paragraph_tokens(pieces: list[_Piece], opening: int, most: int) -> int:
    """The tokens of the paragraph that begins there; 0 when it is longer than `most`."""
    length, at = pieces[opening].tokens, opening + 1
    while at < len(pieces) and not pieces[at].opens and length <= most:
        length += pieces[at].tokens
        at += 1
    return length if length <= most else 0


def _joined(pieces: list[_Piece], count: Callable[[int, int], int]) -> Passage:
    start, end = pieces[0].start, pieces[-1].end
    tokens = pieces[0].tokens if len(pieces) == 1 else count(start, end)
    return Passage(start, end, tokens)
