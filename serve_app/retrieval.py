"""Find what a project's documents say to a question, pure over ports: search two ways, fuse the ranks, keep what fits.

Meaning (embeddings) finds what is said in other words; words find names, part numbers and what the embedding model never
saw. Their scores cannot be compared, their ranks can: reciprocal rank fusion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from serve_app.documents import Documents, Hit
from serve_app.ports import Embedder

_RRF_K: Final = 60  # the usual constant: how much less a later rank counts
_CANDIDATES: Final = 5  # of each way, times top_k
_MOST_CHARACTERS: Final = 2000  # of a question that is searched for; its end is what is asked
# Share of the question's words from which a passage counts as found by words. Of a sentence that says the same in other
# words some passage always has one or two, and would push the right one down (measured: bench/rag_quality.py).
ENOUGH_WORDS: Final = 0.6


@dataclass(frozen=True, slots=True)
class Terms:
    """How evidence is looked for. At most `top_k` passages of `budget_tokens` tokens together.

    `min_similarity`: the cosine to the question from which a passage is relevant.
    """

    top_k: int
    budget_tokens: int
    min_similarity: float

    def facts(self) -> dict[str, Any]:
        """As a part of the question: with other terms the answer may be another."""
        return {"top_k": self.top_k, "budget": self.budget_tokens, "floor": self.min_similarity}


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage that is put before the model. `score`: the sum of its reciprocal ranks."""

    hit: Hit
    score: float


async def retrieve(documents: Documents, embedder: Embedder, project: str, question: str, terms: Terms) -> list[Evidence]:
    """The relevant passages of a project, best first, at most `top_k`; not cut to the budget yet.

    Raises errors.Unavailable when Postgres is away, errors.Overloaded when too much waits for the embedder.
    """
    asked = question[-_MOST_CHARACTERS:]
    if not asked.strip():
        return []
    [vector] = await embedder.embed([asked])
    hits = await documents.search(project, asked, vector, limit=_CANDIDATES * terms.top_k)
    return [found for found in fuse(hits) if is_relevant(found.hit, terms)][: terms.top_k]


def fuse(hits: Sequence[Hit], *, meaning: bool = True, words: bool = True) -> list[Evidence]:
    """All hits by the sum of their reciprocal ranks, best first; each way of searching can be left out, to compare them."""
    fused = []
    for hit in hits:
        worded = words and (hit.coverage >= ENOUGH_WORDS or not meaning)
        ranks = (hit.meaning_rank if meaning else None, hit.words_rank if worded else None)
        score = sum(1 / (_RRF_K + rank) for rank in ranks if rank is not None)
        if score:
            fused.append(Evidence(hit, score))
    return sorted(fused, key=lambda found: (-found.score, -found.hit.similarity, found.hit.document_id, found.hit.ordinal))


def is_relevant(hit: Hit, terms: Terms) -> bool:
    """Whether a passage may have to do with the question: a search always finds something."""
    return hit.similarity >= terms.min_similarity or (hit.words_rank is not None and hit.coverage >= ENOUGH_WORDS)


def within(evidence: Sequence[Evidence], budget_tokens: int) -> list[Evidence]:
    """Those that fit into the budget, the better ones first; a long one does not keep a shorter one out."""
    kept, room = [], budget_tokens
    for found in evidence:
        if found.hit.tokens <= room:
            kept.append(found)
            room -= found.hit.tokens
    return kept
