"""Route rag: what a project's documents have to say to a question, ready for a direct run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from serve_app.documents import Documents
from serve_app.errors import AifactoryError, BadRequest, Unavailable
from serve_app.events import RagReport, SourceReport
from serve_app.evidence_prompt import FENCE_TOKENS, HEAD_TOKENS, VERSION, with_evidence
from serve_app.ports import Embedder, Replicas
from serve_app.retrieval import Evidence, Terms, retrieve, within
from serve_app.runs import Question
from serve_app.settings import Settings
from serve_app.telemetry import count, logger

_ANSWER_TOKENS: Final = 256  # kept free for an answer whose length the request does not say
_CHARS_PER_TOKEN: Final = 3  # of the client's messages; few texts have shorter tokens
_TEMPLATE_TOKENS: Final = 8  # that a chat template adds to a message
_NOTHING: Final = "nothing relevant in the documents: the answer does not rest on them"
_NO_QUESTION: Final = "no text of the user to look for: the answer does not rest on the documents"
_NO_ROOM: Final = "no room beside the prompt for what was found: the answer does not rest on the documents"


@dataclass(frozen=True, slots=True)
class Findings:
    """Evidence for one run, and what to report of it."""

    evidence: tuple[Evidence, ...] = ()
    note: str | None = None

    def messages(self, question: Question) -> list[dict[str, Any]]:
        """What the model is asked; the client never sees it."""
        return with_evidence(question.messages, self.evidence)

    def fewer(self) -> "Findings | None":
        """The better half, for a prompt that turned out too long. None when there is nothing left to leave out."""
        if not self.evidence:
            return None
        kept = self.evidence[: len(self.evidence) // 2]
        return Findings(kept, None if kept else _NO_ROOM)

    def report(self) -> RagReport:
        sources = tuple(
            SourceReport(
                document_id=found.hit.document_id,
                name=found.hit.source_path,
                position=found.hit.ordinal,
                score=round(found.score, 6),
                similarity=round(found.hit.similarity, 4),
            )
            for found in self.evidence
        )
        return RagReport(relevant=bool(sources), used=len(sources), sources=sources, note=self.note)


class Research:
    """Looks things up for the runs of one gateway."""

    def __init__(self, *, documents: Documents, embedder: Embedder | None, replicas: Replicas) -> None:
        self._documents = documents
        self._embedder = embedder
        self._replicas = replicas

    async def of_now(self, question: Question) -> Question:
        """The question against what the project knows now; one look-up by primary key. Raises errors.Unavailable."""
        try:
            corpus = await self._documents.corpus(question.project)
        except Unavailable as error:
            raise Unavailable(
                f"x_route 'rag' needs the documents, and Postgres is away; retry, or use 'direct' ({error.message})",
                retry_after_s=error.retry_after_s,
            ) from error
        return replace(question, corpus=corpus)

    async def find(self, question: Question) -> Findings:
        """The evidence for a question of route rag, within its budget and beside its messages.

        Raises errors.Unavailable when Postgres is away or there is no embedding model.
        """
        if self._embedder is None:
            raise Unavailable("x_route 'rag' needs the embedding model, and this gateway has none")
        text = last_words(question)
        if not text.strip():
            return self._told(Findings(note=_NO_QUESTION))
        terms = terms_of(question)
        found = await retrieve(self._documents, self._embedder, question.project, text, terms)
        if not found:
            return self._told(Findings(note=_NOTHING))
        kept = self._fitting(question, found, terms)
        return self._told(Findings(tuple(kept), None if kept else _NO_ROOM))

    def _fitting(self, question: Question, found: Sequence[Evidence], terms: Terms) -> list[Evidence]:
        """What the budget takes, and what the model's context leaves beside the client's messages and the answer."""
        room = self._room(question)
        kept = within(found, terms.budget_tokens)
        if room is None:
            return kept
        sizes = [found.hit.tokens + FENCE_TOKENS for found in kept]
        while kept and HEAD_TOKENS + sum(sizes[: len(kept)]) > room:
            kept = kept[:-1]
        return kept

    def _room(self, question: Question) -> int | None:
        lengths = {card.model_id: card.max_model_len for card in self._replicas.cards()}
        longest = lengths.get(question.model_id) or lengths.get(question.model)
        if longest is None:
            return None
        params = question.params
        answer = params.get("max_completion_tokens") or params.get("max_tokens") or _ANSWER_TOKENS
        return longest - int(answer) - sum(_tokens(message) for message in question.messages)

    def _told(self, findings: Findings) -> Findings:
        count("aifactory_rag_total", result="used" if findings.evidence else "none")
        logger.debug("evidence looked for", passages=len(findings.evidence), note=findings.note)
        return findings


def rag_terms(settings: Settings, top_k: int | None) -> dict[str, Any]:
    """How evidence is looked for, as the `rag` of a Question."""
    terms = Terms(top_k or settings.rag_top_k, settings.rag_budget_tokens, settings.rag_min_similarity)
    return {**terms.facts(), "v": VERSION}


def terms_of(question: Question) -> Terms:
    """The inverse. Raises BadRequest for a question that is none of route rag."""
    rag = question.rag
    if rag is None:
        raise BadRequest("this question is not of route rag", param="x_route")
    return Terms(int(rag["top_k"]), int(rag["budget"]), float(rag["floor"]))


def is_too_long(error: AifactoryError) -> bool:
    """Whether a replica refused a prompt for its length. vLLM says so in words only."""
    return isinstance(error, BadRequest) and (
        error.code == "context_length_exceeded" or "maximum context length" in error.message
    )


def last_words(question: Question) -> str:
    """The newest text of the user, also where a tool's answer came after it. Empty when there is none."""
    for message in reversed(question.messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return "\n".join(str(p.get("text") or "") for p in content if isinstance(p, dict) and p.get("type") == "text")
            return str(content or "")
    return ""


def _tokens(message: dict[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    characters = sum(len(str(part.get("text") or "").encode()) for part in parts if isinstance(part, dict))
    return _TEMPLATE_TOKENS + -(-characters // _CHARS_PER_TOKEN)
