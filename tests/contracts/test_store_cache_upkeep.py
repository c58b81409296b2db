"""Expiry, caps and quarantine of the answer cache, against a real Postgres."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.runs import CachePolicy, Run
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.cache_upkeep import CacheUpkeep
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import Store, a_run, an_answer, succeeded


@pytest.fixture
def upkeep(postgres_pool: PostgresPool) -> CacheUpkeep:
    return CacheUpkeep(postgres_pool)


@pytest.fixture
def kept(postgres_pool: PostgresPool) -> Store:
    return Store(PostgresRunStore(postgres_pool), PostgresAnswerCache(postgres_pool))


async def settled(store: Store, text: str, *, answer: str = "The sky.", ttl_s: int = 600, **fields: Any) -> Run:
    run = a_run(text, **{"embedding": [1.0, 0.0], "cache": CachePolicy(ttl_s=ttl_s), **fields})
    claim = await store.runs.claim(run, lease_s=30)
    assert await store.runs.settle(replace(run, attempt=claim.record.attempt), succeeded(an_answer(answer)))
    return run


async def expire(pool: PostgresPool, run: Run) -> None:
    async with pool.connection() as connection:
        for table in ("completions_cache", "completion_vectors"):
            await connection.execute(f"UPDATE {table} SET expires_at = now() - interval '1 h' WHERE req_id = $1", run.req_id)


async def is_found(store: Store, run: Run) -> tuple[bool, bool]:
    """Exactly, and by meaning."""
    near = await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.5)
    return await store.cache.exact(run.req_id) is not None, [hit.req_id for hit in near][:1] == [run.req_id]


async def test_expired_answers_go_and_live_ones_stay(upkeep: CacheUpkeep, kept: Store, postgres_pool: PostgresPool) -> None:
    old, live = await settled(kept, "old"), await settled(kept, "live")
    await expire(postgres_pool, old)
    assert (await upkeep.expired(), await upkeep.expired(since_s=7200)) == (1, 0)
    assert await upkeep.purge() == 1
    assert (await upkeep.expired(), await upkeep.purge()) == (0, 0)
    assert await is_found(kept, live) == (True, True)


async def test_a_quarantined_answer_is_never_given_again(upkeep: CacheUpkeep, kept: Store, postgres_pool: PostgresPool) -> None:
    run, good = await settled(kept, "bad"), await settled(kept, "good", embedding=[0.8, 0.6])
    assert await is_found(kept, run) == (True, True)
    assert await upkeep.quarantine(run.req_id, "refuted")
    assert await is_found(kept, run) == (False, False)
    assert await is_found(kept, good) == (True, True), "a bad answer does not hide the next best"
    assert not await upkeep.quarantine(run.req_id, "again")
    assert not await upkeep.quarantine("unknown", "refuted")
    async with postgres_pool.connection() as connection:
        reason = await connection.fetchval("SELECT quarantine_reason FROM completions_cache WHERE req_id = $1", run.req_id)
    assert reason == "refuted"


async def test_a_quarantined_answer_is_not_found_by_a_vector_that_is_still_there(
    upkeep: CacheUpkeep, kept: Store, postgres_pool: PostgresPool
) -> None:
    run = await settled(kept, "bad")
    async with postgres_pool.connection() as connection:
        await connection.execute("UPDATE completions_cache SET quarantined_at = now()")
    assert await is_found(kept, run) == (False, False)


async def test_a_new_answer_lifts_the_quarantine(upkeep: CacheUpkeep, kept: Store) -> None:
    run = await settled(kept, "asked twice")
    await upkeep.quarantine(run.req_id, "refuted")
    again = await settled(kept, "asked twice", started=run.started + 60)
    assert again.req_id == run.req_id
    assert await is_found(kept, again) == (True, True)


async def test_bad_answers_go_into_quarantine_with_a_reason(
    upkeep: CacheUpkeep, kept: Store, postgres_pool: PostgresPool
) -> None:
    good = await settled(kept, "good")
    plain = await settled(kept, "without vector", embedding=None)
    empty = await settled(kept, "empty", answer=" \n\t ")
    long = await settled(kept, "long", embedding=[1.0, 0.0, 0.0])
    assert await upkeep.quarantine_bad(2) == 2
    assert await upkeep.quarantine_bad(2) == 0, "once is enough"
    async with postgres_pool.connection() as connection:
        rows = await connection.fetch("SELECT req_id, quarantine_reason AS why FROM completions_cache")
    assert {row["req_id"]: row["why"] for row in rows} == {
        good.req_id: None,
        plain.req_id: None,
        empty.req_id: "empty answer",
        long.req_id: "vector of 3 dimensions instead of 2",
    }
    assert [await is_found(kept, run) for run in (good, empty, long)] == [(True, True), (False, False), (False, False)]


async def test_many_bad_answers_are_found_page_by_page(upkeep: CacheUpkeep, postgres_pool: PostgresPool) -> None:
    await fill(postgres_pool, 12_000, content="")
    assert await upkeep.quarantine_bad(2) == 12_000


async def test_a_scope_keeps_the_vectors_that_live_longest(upkeep: CacheUpkeep, kept: Store, postgres_pool: PostgresPool) -> None:
    runs = [await settled(kept, f"question {n}", ttl_s=1000 + n) for n in range(4)]
    other = await settled(kept, "elsewhere", system="another scope")
    assert await upkeep.trim_scopes(2) == 2
    assert await upkeep.trim_scopes(2) == 0
    async with postgres_pool.connection() as connection:
        left = {row["req_id"] for row in await connection.fetch("SELECT req_id FROM completion_vectors")}
    assert left == {runs[2].req_id, runs[3].req_id, other.req_id}
    assert [(await is_found(kept, run))[0] for run in runs] == [True] * 4, "the answers are still found exactly"


async def test_no_more_answers_than_the_cap_in_all(upkeep: CacheUpkeep, kept: Store) -> None:
    runs = [await settled(kept, f"question {n}", ttl_s=1000 + n, system=str(n)) for n in range(4)]
    assert await upkeep.trim(3) == 1
    assert await upkeep.trim(3) == 0
    assert [await is_found(kept, run) for run in runs] == [(False, False), *[(True, True)] * 3]


async def test_more_than_one_batch_is_trimmed_in_one_call(upkeep: CacheUpkeep, postgres_pool: PostgresPool) -> None:
    await fill(postgres_pool, 11_000)
    assert await upkeep.trim_scopes(100) == 10_900
    assert await upkeep.trim(50) == 10_950


async def fill(pool: PostgresPool, rows: int, content: str = "The sky.") -> None:
    """Many answers of one scope."""
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO completions_cache (req_id, project, scope, trace_id, model, content, answer, usage, expires_at)"
            " SELECT n::text, 'p', 's', n::text, 'm', $2, 'null', 'null', now() + make_interval(secs => 1000 + n)"
            " FROM generate_series(1, $1::int) AS n",
            rows,
            content,
        )
        await connection.execute(
            "INSERT INTO completion_vectors (req_id, scope, embedding, expires_at)"
            " SELECT req_id, scope, '[1,0]', expires_at FROM completions_cache"
        )
