"""HNSW for huge scopes, measured against exact search on a real Postgres: its recall, and when an index comes and goes."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.answers_json import answer_to_json
from serve_app.store.cache_upkeep import CacheUpkeep
from serve_app.store.hnsw import Fitted, search_queries
from serve_app.store.pool import PostgresPool
from tests.contracts.store_cases import USAGE, an_answer

Vectors = NDArray[np.float32]
DIMENSIONS = 48
LARGE, SMALL = 3000, 60  # vectors of a scope
POPULAR = 40  # prompts that every scope holds
SMALL_SCOPES = 80
GONE_EACH = 150  # expired neighbours of each popular prompt: more than ef_search
LEAST = 2000


def scope(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass
class Crowd:
    """One large scope among many small ones that hold its popular prompts too."""

    pool: PostgresPool
    popular: Vectors
    asked: Vectors  # near popular prompts, and near others
    upkeep: CacheUpkeep

    def __post_init__(self) -> None:
        self.exact, self.indexed = PostgresAnswerCache(self.pool), PostgresAnswerCache(self.pool, indexed=True)

    async def recall(self, vectors: Vectors) -> float:
        """The part of the three nearest by exact search that the index finds too."""
        found = wanted = 0
        for vector in vectors:
            right = {hit.req_id for hit in await self.exact.nearest(scope("large"), vector.tolist(), threshold=0)}
            near = [hit.req_id for hit in await self.indexed.nearest(scope("large"), vector.tolist(), threshold=0)]
            assert len(near) == len(set(near))
            wanted += len(right)
            found += len(right & set(near))
        assert wanted == 3 * len(vectors), "the comparison must have something to compare"
        return found / wanted

    async def found_without_iterating(self, vectors: Vectors) -> float:
        """The part of the three places that the very query fills when the index gives its ef_search nearest only."""
        statement, found = search_queries(DIMENSIONS).nearest_answers.sql, 0
        for vector in vectors:
            async with self.pool.transaction() as connection:
                await search_queries(DIMENSIONS).prepare_search(connection)
                await connection.execute("SET LOCAL hnsw.iterative_scan = off")
                found += len(await connection.fetch(statement, vector, scope("large"), 0.0))
        return found / (3 * len(vectors))

    async def plan(self, of: str) -> str:
        async with self.pool.transaction() as connection:
            statement = "EXPLAIN " + search_queries(DIMENSIONS).nearest_answers.sql
            return "\n".join(row[0] for row in await connection.fetch(statement, self.popular[0], scope(of), 0.0))

    async def store(self, of: str, vectors: Iterable[Vectors], *, live: bool = True, kind: str = "") -> None:
        rows = [(f"{of} {kind} {number}", vector) for number, vector in enumerate(vectors)]
        answer, usage, hours = answer_to_json(an_answer()), USAGE.model_dump(), 1 if live else -1
        async with self.pool.transaction() as connection:
            await connection.executemany(
                "INSERT INTO completions_cache (req_id, project, scope, trace_id, model, content, answer, usage, expires_at)"
                " VALUES ($1, 'p', $2, $1, 'm', 'x', $3, $4, now() + make_interval(hours => $5))",
                [(req_id, scope(of), answer, usage, hours) for req_id, _ in rows],
            )
            await connection.executemany(
                "INSERT INTO completion_vectors (req_id, scope, embedding, question, expires_at)"
                " VALUES ($1, $2, $3, 'x', now() + make_interval(hours => $4))",
                [(req_id, scope(of), vector, hours) for req_id, vector in rows],
            )
            await connection.execute("ANALYZE completion_vectors")


def unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def around(centres: Vectors, rng: np.random.Generator, far: float) -> Vectors:
    """One vector near each: `far` is the length of what is added to a vector of length one."""
    return unit(centres + far * unit(rng.normal(size=centres.shape).astype(np.float32)))


@pytest.fixture
async def crowd(postgres_pool: PostgresPool) -> Crowd:
    rng = np.random.default_rng(7)
    topics = unit(rng.normal(size=(150, DIMENSIONS)).astype(np.float32))
    texts = around(topics[rng.integers(0, len(topics), LARGE)], rng, 0.8)
    popular = texts[:POPULAR]
    asked = around(np.concatenate([popular, texts[1000 : 1000 + POPULAR]]), rng, 0.2)
    made = Crowd(postgres_pool, popular, asked, CacheUpkeep(postgres_pool))
    await made.store("large", texts)
    await made.store("small", popular)
    for number in range(SMALL_SCOPES):
        await made.store(f"small {number}", around(popular, rng, 0.05))
    return made


async def test_the_index_finds_what_exact_search_finds(crowd: Crowd) -> None:
    assert await crowd.upkeep.fit_indexes(LEAST, DIMENSIONS) == Fitted(built=1, dropped=0, held=1)
    assert "completion_vectors_hnsw_" in await crowd.plan("large"), "without the index this would compare exact with exact"
    assert await crowd.recall(crowd.asked) >= 0.97
    assert "completion_vectors_hnsw_" not in await crowd.plan("small"), "small scopes are searched exactly"


async def test_it_looks_past_neighbours_that_do_not_count(crowd: Crowd) -> None:
    rng = np.random.default_rng(8)
    await crowd.store("large", around(np.repeat(crowd.popular, GONE_EACH, axis=0), rng, 0.05), live=False, kind="gone")
    await crowd.upkeep.fit_indexes(LEAST, DIMENSIONS)
    assert "completion_vectors_hnsw_" in await crowd.plan("large")
    near_popular = crowd.asked[:POPULAR]
    # Each build draws another graph: from 0.95 to 1 over ten of them. Without strict_order it is the next line's.
    assert await crowd.recall(near_popular) >= 0.9
    assert await crowd.found_without_iterating(near_popular) < 0.5, "the trap is none: this would pass without strict_order"


async def test_an_index_comes_and_goes_with_its_scope(crowd: Crowd, postgres_pool: PostgresPool) -> None:
    fit = crowd.upkeep.fit_indexes
    assert await fit(LARGE + 1, DIMENSIONS) == Fitted()
    assert await fit(LARGE, DIMENSIONS) == Fitted(built=1, held=1)
    assert await fit(LARGE, DIMENSIONS) == Fitted(held=1)
    assert await fit(LARGE + 1000, DIMENSIONS) == Fitted(held=1), "a little under the bound it stays"
    assert await fit(LARGE, DIMENSIONS + 1) == Fitted(built=1, dropped=1, held=1), "another model, another index"
    async with postgres_pool.connection() as connection:  # as after a build that broke off
        await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid::regclass::text LIKE '%hnsw%'")
    assert await fit(LARGE, DIMENSIONS + 1) == Fitted(built=1, dropped=1, held=1)
    await crowd.upkeep.trim_scopes(500)
    assert await fit(LARGE, DIMENSIONS + 1) == Fitted(dropped=1)
    assert await fit(400, DIMENSIONS) == Fitted(built=1, held=1)
    assert await fit(None, DIMENSIONS) == Fitted(dropped=1), "the setting was taken back"


async def test_while_one_process_builds_another_does_nothing(crowd: Crowd, postgres_pool: PostgresPool) -> None:
    async with postgres_pool.connection() as connection:
        await connection.execute("SELECT pg_advisory_lock(hashtext('completion_vectors_hnsw'))")
        assert await crowd.upkeep.fit_indexes(LEAST, DIMENSIONS) == Fitted()
        await connection.execute("SELECT pg_advisory_unlock(hashtext('completion_vectors_hnsw'))")
    assert (await crowd.upkeep.fit_indexes(LEAST, DIMENSIONS)).built == 1


async def test_a_session_that_built_is_as_it_was(crowd: Crowd, postgres_dsn: str) -> None:
    pool = PostgresPool(postgres_dsn, size=1)
    try:
        await CacheUpkeep(pool).fit_indexes(LEAST, DIMENSIONS)
        async with pool.connection() as connection:
            assert await connection.fetchval("SHOW statement_timeout") == "5s"
            assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    finally:
        await pool.close()


async def test_another_model_can_be_served_from_an_indexed_scope(crowd: Crowd) -> None:
    await crowd.upkeep.fit_indexes(LEAST, DIMENSIONS)
    longer = unit(np.ones((1, DIMENSIONS * 2), dtype=np.float32))
    await crowd.store("large", longer, kind="longer")
    (hit,) = await crowd.indexed.nearest(scope("large"), longer[0].tolist(), threshold=0.5)
    assert hit.req_id == "large longer 0"
    assert hit.similarity == pytest.approx(1.0, abs=0.002)


async def test_what_verification_found_out_counts_here_too(crowd: Crowd, postgres_pool: PostgresPool) -> None:
    await crowd.upkeep.fit_indexes(LEAST, DIMENSIONS)
    vector = crowd.asked[0].tolist()
    (best, *_) = await crowd.indexed.nearest(scope("large"), vector, threshold=0)
    async with postgres_pool.connection() as connection:
        await connection.execute("INSERT INTO scope_trust (scope, least_similarity) VALUES ($1, 0.9999)", scope("large"))
    assert best.similarity < 0.9999
    assert await crowd.indexed.nearest(scope("large"), vector, threshold=0) == []


def test_a_bound_that_no_scope_can_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="never reached"):
        Settings(config="simulated", cache_hnsw_from=5000)
    assert Settings(config="simulated", cache_hnsw_from=5000, cache_entries_per_scope=5001).cache_hnsw_from == 5000
