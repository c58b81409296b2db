"""Recall: ask the cache before asking a model. A cache that is away means miss."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.errors import Unavailable
from serve_app.events import RecallReport
from serve_app.ports import AnswerCache, CacheHit, Embedder
from serve_app.runs import Answer, Run
from serve_app.telemetry import count, logger

SEMANTIC_MAX_CHARACTERS = 2000
SEMANTIC_MAX_TOKENS = 128  # above this a vector says too little about what a text asks


async def recall_exact(cache: AnswerCache, run: Run) -> Answer | None:
    """The stored answer to exactly this question, if the request allows one."""
    if not run.cache.reads:
        return None
    try:
        hit = await cache.exact(run.req_id)
    except Unavailable as error:
        logger.warning("cache is away, counted as a miss", error=error.message)
        return None
    return _marked(hit, "exact") if hit else None


async def recall_semantic(cache: AnswerCache, run: Run) -> Answer | None:
    """The stored answer to a question in the same scope that means the same, marked provisional."""
    if not run.cache.reads or run.embedding is None:
        return None
    try:
        hit = await cache.nearest(run.question.scope, run.embedding, threshold=run.cache.threshold)
    except Unavailable as error:
        logger.warning("cache is away, counted as a miss", error=error.message)
        return None
    return _marked(hit, "semantic") if hit else None


async def embed_question(embedder: Embedder | None, run: Run) -> Run:
    """The run with the embedding of its last user text, where the cache may compare by meaning.

    Texts that the model would have to cut are matched exactly only: two long texts that differ near their end
    would get one vector. So are texts that it cannot read (unknown tokens), which all look alike to it.
    """
    text = run.question.last_user_text
    if embedder is None or text is None or not text.strip() or not (run.cache.reads or run.cache.writes):
        return run
    if len(text) > SEMANTIC_MAX_CHARACTERS:
        return run  # before the tokenizer sees it: that works on the event loop
    try:
        if embedder.count_tokens(text) > SEMANTIC_MAX_TOKENS or embedder.has_unknown(text):
            return run
        vectors: Sequence[list[float]] = await embedder.embed([text])
    except Exception as error:  # noqa: BLE001 - whatever breaks in the cache costs a hit, never the answer
        logger.opt(exception=error).warning("question not embedded, counted as a miss")
        return run
    return replace(run, embedding=vectors[0])


def _marked(hit: CacheHit, result: str) -> Answer:
    report = RecallReport.model_validate(
        {"result": result, "similarity": round(hit.similarity, 4), "provisional": result == "semantic"}
    )
    return replace(hit.answer, cache=report)


def count_recall(result: str) -> None:
    """One recall result, for the metrics."""
    count("aifactory_cache_results_total", result=result)
