"""Recall: ask the cache before asking a model. A cache that is away means miss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from serve_app.errors import Unavailable
from serve_app.events import RecallReport
from serve_app.guards import Guards, Reading, read
from serve_app.ports import AnswerCache, CacheHit, Embedder
from serve_app.runs import INSTRUCTING, Answer, Run
from serve_app.spans import Notes, timed
from serve_app.telemetry import count, logger

_MOST_CHARACTERS: Final = 2000
_MOST_TOKENS: Final = 128  # above this a vector says too little about what a text asks
_READINGS: Final = 64  # texts; a long one takes some 100 kB as it is read


@dataclass(frozen=True, slots=True)
class Recalled:
    """A stored answer to a similar question, marked provisional, and the entry that it comes from."""

    answer: Answer
    hit: CacheHit


async def recall_exact(cache: AnswerCache, run: Run) -> Answer | None:
    """The stored answer to exactly this question, if the request allows one."""
    if not run.cache.reads:
        return None
    with timed(run, "recall exact", of_exchange=True) as span:
        try:
            hit = await cache.exact(run.req_id)
        except Unavailable as error:
            logger.warning("cache is away, counted as a miss", error=error.message)
            span.fail(error)
            return None
        _tell(span, "exact", hit)
    return _marked(hit, "exact") if hit else None


async def recall_semantic(cache: AnswerCache, guards: Guards, run: Run) -> Recalled | None:
    """The stored answer to a question in the same scope that means the same, marked provisional.

    Of the nearest few the first that no guard objects to.
    """
    text = run.question.last_user_text
    if not run.cache.reads or run.embedding is None or text is None:
        return None
    with timed(run, "recall semantic", of_exchange=True) as span:
        try:
            hits = await cache.nearest(run.question.scope, run.embedding, threshold=run.cache.threshold)
            found = _first_that_passes(guards, text, hits)
        except Unavailable as error:
            logger.warning("cache is away, counted as a miss", error=error.message)
            span.fail(error)
            return None
        _tell(span, "semantic", found.hit if found else None, candidates=len(hits))
    return found


def _first_that_passes(guards: Guards, text: str, hits: Sequence[CacheHit]) -> Recalled | None:
    try:
        asked = _reading(text)
        return next((Recalled(_marked(hit, "semantic"), hit) for hit in hits if _passes(guards, asked, hit)), None)
    except Exception as error:  # noqa: BLE001 - a guard of somebody else may raise anything
        logger.opt(exception=error).warning("a guard broke, counted as a miss")
        return None


def _passes(guards: Guards, asked: Reading, hit: CacheHit) -> bool:
    if hit.question is None:
        return False
    veto = guards.veto(asked, _reading(hit.question))
    if veto is not None:
        count("aifactory_cache_vetoes_total", rule=veto.rule)
        logger.info("a guard kept a stored answer back", rule=veto.rule, reason=veto.reason, stored=hit.trace_id)
    return veto is None


@lru_cache(_READINGS)
def _reading(text: str) -> Reading:
    """The text as the guards see it. What is asked is wanted twice, before its embedding and after the search."""
    return read(text)


async def embed_question(embedder: Embedder | None, guards: Guards, run: Run) -> Run:
    """The run with the embedding of its last user text, where the cache may compare by meaning; else it is as it was.

    Matched exactly only: texts that the model would have to cut (two that differ near their end would get one vector),
    or cannot read (unknown tokens all look alike to it), or that a guard refuses; and what follows earlier turns, on
    which the meaning of a last "yes, do that" depends.
    """
    text = run.question.last_user_text
    if embedder is None or text is None or not (run.cache.reads or run.cache.writes):
        return run
    if len(text) > _MOST_CHARACTERS or any(m.get("role") not in INSTRUCTING for m in run.question.messages[:-1]):
        return run  # before the tokenizer sees it: that works on the event loop
    try:
        if embedder.count_tokens(text) > _MOST_TOKENS or embedder.has_unknown(text):
            return run
        veto = guards.refuse(_reading(text))
        if veto is not None:
            count("aifactory_cache_vetoes_total", rule=veto.rule)
            logger.debug("this question is answered by its exact twin only", rule=veto.rule, reason=veto.reason)
            return run
        vectors: Sequence[list[float]] = await embedder.embed([text])
    except Exception as error:  # noqa: BLE001 - whatever breaks in the cache costs a hit, never the answer
        logger.opt(exception=error).warning("question not embedded, counted as a miss")
        return run
    return replace(run, embedding=vectors[0])


def _tell(span: Notes, result: str, hit: CacheHit | None, *, candidates: int | None = None) -> None:
    span.note({"aifactory.cache.result": result if hit else "miss", "aifactory.cache.candidates": candidates})
    if hit is not None:
        span.note({"aifactory.cache.similarity": round(hit.similarity, 4), "aifactory.cache.stored_by": hit.trace_id})


def _marked(hit: CacheHit, result: str) -> Answer:
    report = RecallReport.model_validate(
        {"result": result, "similarity": round(hit.similarity, 4), "provisional": result == "semantic"}
    )
    return replace(hit.answer, cache=report)


def count_recall(result: str) -> None:
    """One recall result, for the metrics."""
    count("aifactory_cache_results_total", result=result)
