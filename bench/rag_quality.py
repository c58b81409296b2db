"""How well does route rag find the right passage? By meaning alone, by words alone, and both fused.

    python bench/rag_quality.py                        # the set that ships, on an embedded Postgres of its own
    python bench/rag_quality.py --floors 0.2,0.3,0.4   # what another rag_min_similarity would keep and let through

It stores the documents of bench/data/rag, chunks and embeds them, and searches, all through the product's own code, with the
settings as they are. A passage is right if it is of the right document and holds the words that answer the question.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.ending import end_on_sigterm
from bench.gateway.summary import quantile
from bench.own_postgres import own_pool
from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.rag import chunking_for, refresh_chunks
from serve_app.retrieval import Evidence, Terms, fuse, is_relevant
from serve_app.settings import Settings
from serve_app.store.documents import PostgresDocuments

_DATA: Final = Path(__file__).parent / "data" / "rag"
_PROJECT: Final = "bench"
_WAYS: Final = {"meaning": (True, False), "words": (False, True), "hybrid": (True, True)}
_DEPTHS: Final = (1, 3, 5)


@dataclass(frozen=True)
class Question:
    """One labelled question; without `document` nothing that is known answers it."""

    question: str
    kind: str
    document: str | None = None
    answer: str = ""

    def rank(self, found: Sequence[Evidence]) -> int | None:
        """Where the first right passage stands, from 1."""
        for place, evidence in enumerate(found, 1):
            if evidence.hit.source_path == self.document and self.answer in evidence.hit.content:
                return place
        return None


@dataclass(frozen=True)
class Asked:
    """A question and what each way of searching found, the best first."""

    question: Question
    found: dict[str, list[Evidence]]
    seconds: float


def main() -> None:
    """Prints the tables."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description="recall of retrieval on a small labelled set")
    parser.add_argument("--floors", type=_numbers, default=(), help="values of rag_min_similarity to compare, such as 0.2,0.3")
    parser.add_argument("--misses", action="store_true", help="name the questions whose passage is not among the first three")
    parser.add_argument("--data", type=Path, default=_DATA, help="a folder with documents/ and questions.jsonl")
    options = parser.parse_args()
    asyncio.run(_measure(options))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


async def _measure(options: argparse.Namespace) -> None:
    settings = Settings(config="simulated")
    questions = _questions(options.data / "questions.jsonl")
    embedder = load_embedder(settings)
    async with own_pool() as pool:
        documents = PostgresDocuments(pool)
        chunks = await _teach(documents, embedder, settings, options.data / "documents")
        asked = [await _ask(documents, embedder, settings, question) for question in questions]
    answerable = [one for one in asked if one.question.document is not None]
    print(f"{chunks}; {len(answerable)} questions with an answer, {len(asked) - len(answerable)} without")
    p50, p95 = (1000 * quantile([one.seconds for one in asked], share) for share in (0.5, 0.95))
    print(f"embedding and search: p50 {p50:.1f} ms, p95 {p95:.1f} ms\n")
    for kind in ("all", *sorted({one.question.kind for one in answerable})):
        _table(kind, [one for one in answerable if kind in ("all", one.question.kind)])
    _floors(asked, settings, options.floors)
    if options.misses:
        _misses(answerable)
    embedder.close()


def _questions(path: Path) -> list[Question]:
    return [Question(**json.loads(line)) for line in path.read_text().splitlines()]


def _texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


async def _teach(documents: PostgresDocuments, embedder: OnnxEmbedder, settings: Settings, folder: Path) -> str:
    for name, text in _texts(folder).items():
        await documents.put(_PROJECT, str(folder), name, text)
    chunking = chunking_for(embedder, max_tokens=settings.chunk_tokens, overlap=settings.chunk_overlap_tokens)
    made = await refresh_chunks(documents, embedder, _PROJECT, chunking)
    return f"{made.documents} documents, {made.chunks} chunks of at most {chunking.max_tokens} tokens"


async def _ask(documents: PostgresDocuments, embedder: OnnxEmbedder, settings: Settings, question: Question) -> Asked:
    began = time.perf_counter()
    [vector] = await embedder.embed([question.question])
    hits = await documents.search(_PROJECT, question.question, vector, limit=5 * settings.rag_top_k)
    seconds = time.perf_counter() - began
    return Asked(question, {way: fuse(hits, meaning=m, words=w) for way, (m, w) in _WAYS.items()}, seconds)


def _table(kind: str, asked: Sequence[Asked]) -> None:
    print(f"{kind + f' ({len(asked)})':<20}" + "".join(f"{f'recall@{depth}':>10}" for depth in _DEPTHS) + f"{'MRR':>8}")
    for way in _WAYS:
        ranks = [one.question.rank(one.found[way]) for one in asked]
        recalls = [sum(rank is not None and rank <= depth for rank in ranks) / len(ranks) for depth in _DEPTHS]
        mrr = sum(1 / rank for rank in ranks if rank is not None) / len(ranks)
        print(f"  {way:<18}" + "".join(f"{recall:>10.3f}" for recall in recalls) + f"{mrr:>8.3f}")
    print()


def _floors(asked: Sequence[Asked], settings: Settings, others: Sequence[float]) -> None:
    """What the floor of relevance keeps of the right passages, and how many questions without an answer get passages."""
    print(f"of {settings.rag_top_k} passages behind the floor (setting rag_min_similarity)")
    print(f"{'floor':>7}{'right one kept':>17}{'no answer, yet passages':>26}{'passages each':>16}")
    for floor in sorted({settings.rag_min_similarity, *others}):
        terms = Terms(settings.rag_top_k, settings.rag_budget_tokens, floor)
        kept = {id(one): [e for e in one.found["hybrid"] if is_relevant(e.hit, terms)][: terms.top_k] for one in asked}
        right = [one.question.rank(kept[id(one)]) is not None for one in asked if one.question.document is not None]
        wrong = [bool(kept[id(one)]) for one in asked if one.question.document is None]
        mean = sum(len(passages) for passages in kept.values()) / len(kept)
        mark = " *" if floor == settings.rag_min_similarity else ""
        print(f"{floor:>7.2f}{sum(right) / len(right):>17.3f}{f'{sum(wrong)} of {len(wrong)}':>26}{mean:>16.2f}{mark}")


def _misses(asked: Sequence[Asked]) -> None:
    for one in asked:
        ranks = {way: one.question.rank(one.found[way]) for way in _WAYS}
        if (ranks["hybrid"] or 9) > 3:
            print(f"  {one.question.question!r} ({one.question.document}): {ranks}")


if __name__ == "__main__":
    sys.exit(main())
