"""AnswerCache on Postgres: exact recall by primary key, semantic recall by vector inside one scope."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from serve_app.ports import CacheHit
from serve_app.store.answers_json import answer_from_json
from serve_app.store.hnsw import search_queries
from serve_app.store.pool import PostgresPool
from serve_app.store.queries import load_queries
from serve_app.telemetry import logger


class PostgresAnswerCache:
    """Reads completions_cache. It is written by PostgresRunStore.settle, in the transaction that ends the run.

    `indexed`: a huge scope may be searched through its HNSW index, where it has one (store.hnsw); else each is exact.
    """

    def __init__(self, pool: PostgresPool, *, indexed: bool = False) -> None:
        self._pool = pool
        self._indexed = indexed
        self._queries = load_queries()

    async def exact(self, req_id: str) -> CacheHit | None:
        """See ports.AnswerCache."""
        async with self._pool.connection() as connection:
            row = await self._queries.exact_answer(connection, req_id=req_id)
        return None if row is None else _readable(row, 1.0)

    async def nearest(self, scope: str, embedding: Sequence[float], *, threshold: float) -> list[CacheHit]:
        """See ports.AnswerCache. Vectors are stored in half precision: similarity is good to about 0.001."""
        asked = {"scope": scope, "embedding": list(embedding), "threshold": threshold}
        if not self._indexed:
            async with self._pool.connection() as connection:
                return await _near(self._queries.nearest_answers(connection, **asked))
        queries = search_queries(len(embedding))
        async with self._pool.transaction() as connection:
            await queries.prepare_search(connection)
            return await _near(queries.nearest_answers(connection, **asked))


async def _near(rows: AsyncIterator[Any]) -> list[CacheHit]:
    # Rounding can lift the similarity of equal vectors a little over 1.
    hits = [_readable(row, min(1.0, row["similarity"]), row["question"]) async for row in rows]
    return [hit for hit in hits if hit is not None]


def _readable(row: Any, similarity: float, question: str | None = None) -> CacheHit | None:
    """The hit; None for an answer that this version cannot read, as a newer gateway beside it may have written it."""
    try:
        answer = answer_from_json(row["answer"])
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("a stored answer cannot be read, counted as a miss", stored=row["trace_id"], error=type(error).__name__)
        return None
    return CacheHit(
        req_id=row["req_id"],
        trace_id=row["trace_id"],
        answer=answer,
        similarity=similarity,
        created_at=row["created_at"].timestamp(),
        question=question,
    )
