"""AnswerCache on Postgres: exact recall by primary key, semantic recall by vector inside one scope."""

from collections.abc import Sequence
from typing import Any

from serve_app.ports import CacheHit
from serve_app.store.answers_json import answer_from_json
from serve_app.store.pool import PostgresPool
from serve_app.store.queries import load_queries


class PostgresAnswerCache:
    """Reads completions_cache. It is written by PostgresRunStore.settle, in the transaction that ends the run."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def exact(self, req_id: str) -> CacheHit | None:
        """See ports.AnswerCache."""
        async with self._pool.connection() as connection:
            row = await self._queries.exact_answer(connection, req_id=req_id)
        return None if row is None else _hit(row, 1.0)

    async def nearest(self, scope: str, embedding: Sequence[float], *, threshold: float) -> list[CacheHit]:
        """See ports.AnswerCache. Vectors are stored in half precision: similarity is good to about 0.001."""
        async with self._pool.connection() as connection:
            rows = self._queries.nearest_answers(connection, scope=scope, embedding=list(embedding), threshold=threshold)
            # Rounding can lift the similarity of equal vectors a little over 1.
            return [_hit(row, min(1.0, row["similarity"]), row["question"]) async for row in rows]


def _hit(row: Any, similarity: float, question: str | None = None) -> CacheHit:
    return CacheHit(
        req_id=row["req_id"],
        trace_id=row["trace_id"],
        answer=answer_from_json(row["answer"]),
        similarity=similarity,
        created_at=row["created_at"].timestamp(),
        question=question,
    )
