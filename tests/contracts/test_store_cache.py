"""The contract of ports.AnswerCache, held against Postgres and against the double."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.runs import CachePolicy, Outcome, Run
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import CANCELLED, SKEW_S, Store, a_run, an_answer, failed, succeeded


async def settled(store: Store, run: Run, outcome: Outcome) -> None:
    claim = await store.runs.claim(run, lease_s=30)
    assert claim.claimed
    assert await store.runs.settle(replace(run, attempt=claim.record.attempt), outcome)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_an_answer_comes_back_exactly_and_by_meaning(store: Store) -> None:
    answer = an_answer("naïve \x00 ☃ \U0001f600", reasoning_content="", deep={"b": [1, 1.0, 1e-9, None, True], "a": {}})
    run = a_run(embedding=[0.6, 0.8])
    before = time.time()
    await settled(store, run, succeeded(answer))
    after = time.time()
    exact = await store.cache.exact(run.req_id)
    (near,) = await store.cache.nearest(run.question.scope, [0.8, 0.6], threshold=0.9)
    assert exact is not None
    assert exact.answer == near.answer == answer
    assert str(exact.answer) == str(answer)  # the order of keys too: a replay is byte for byte
    assert (exact.question, near.question) == (None, "What is up?")
    assert (exact.trace_id, exact.req_id, exact.similarity) == (run.trace_id, run.req_id, 1.0)
    assert near.similarity == pytest.approx(0.96, abs=0.002)
    assert before - SKEW_S < exact.created_at < after + SKEW_S


@pytest.mark.parametrize(
    "outcome",
    [
        succeeded(an_answer(finish_reason="length")),
        succeeded(an_answer(tool_calls=[{"id": "1"}])),
        failed(retryable=True),
        CANCELLED,
        replace(CANCELLED, answer=an_answer("partial")),
    ],
    ids=["cut", "tool call", "failed", "cancelled", "cancelled with text"],
)
async def test_what_is_never_cached(store: Store, outcome: Outcome) -> None:
    run = a_run(embedding=[1.0, 0.0])
    await settled(store, run, outcome)
    assert await store.cache.exact(run.req_id) is None
    assert await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0) == []


@pytest.mark.parametrize(("mode", "kept"), [("use", True), ("refresh", True), ("bypass", False), ("only", False)])
async def test_the_request_says_whether_its_answer_is_kept(store: Store, mode: Any, kept: bool) -> None:
    run = a_run(cache=CachePolicy(mode=mode))
    await settled(store, run, succeeded())
    assert (await store.cache.exact(run.req_id) is not None) is kept


async def test_a_refresh_replaces_the_answer_and_keeps_it_findable(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0])
    await settled(store, run, succeeded(an_answer("old")))
    newer = a_run(cache=CachePolicy(mode="refresh"))
    await settled(store, newer, succeeded(an_answer("new")))
    exact = await store.cache.exact(run.req_id)
    (near,) = await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.92)
    assert exact is not None
    assert (exact.answer.text, exact.trace_id, near.answer.text) == ("new", newer.trace_id, "new")


async def test_another_scope_never_hits(store: Store) -> None:
    run, other = a_run(system="Be kind.", embedding=[1.0, 0.0]), a_run(system="Be rude.", embedding=[1.0, 0.0])
    assert run.question.scope != other.question.scope
    await settled(store, run, succeeded())
    assert len(await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.92)) == 1
    assert await store.cache.nearest(other.question.scope, [1.0, 0.0], threshold=0) == []


async def test_the_nearest_come_first_and_the_threshold_holds(store: Store) -> None:
    near, far = a_run("near", embedding=[0.6, 0.8]), a_run("far", embedding=[0.0, 1.0])
    await settled(store, far, succeeded())
    await settled(store, near, succeeded())
    (hit,) = await store.cache.nearest(near.question.scope, [0.8, 0.6], threshold=0.92)
    assert hit.req_id == near.req_id
    both = await store.cache.nearest(near.question.scope, [0.8, 0.6], threshold=0.5)
    assert [(hit.req_id, hit.question) for hit in both] == [(near.req_id, "near"), (far.req_id, "far")]
    assert await store.cache.nearest(near.question.scope, [0.8, 0.6], threshold=0.97) == []


async def test_three_candidates_at_most(store: Store) -> None:
    for number in range(5):
        await settled(store, a_run(f"question {number}", embedding=[1.0, number / 10]), succeeded())
    hits = await store.cache.nearest(a_run().question.scope, [1.0, 0.0], threshold=0.1)
    assert len(hits) == 3


async def test_threshold_zero_is_a_value(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0])
    await settled(store, run, succeeded())
    (at_right_angles,) = await store.cache.nearest(run.question.scope, [0.0, 1.0], threshold=0.0)
    assert at_right_angles.similarity == 0
    assert await store.cache.nearest(run.question.scope, [-1.0, 0.0], threshold=0.0) == []


async def test_vectors_of_another_model_are_passed_over(store: Store) -> None:
    run, wider = a_run("two", embedding=[1.0, 0.0]), a_run("three", embedding=[1.0, 0.0, 0.0])
    await settled(store, run, succeeded())
    await settled(store, wider, succeeded())
    (hit,) = await store.cache.nearest(run.question.scope, [1.0, 0.0, 0.0], threshold=0.9)
    assert hit.req_id == wider.req_id


async def test_a_vector_without_its_question_is_passed_over(postgres_pool: PostgresPool) -> None:
    store = Store(PostgresRunStore(postgres_pool), PostgresAnswerCache(postgres_pool))
    run = a_run(embedding=[1.0, 0.0])
    await settled(store, run, succeeded())
    async with postgres_pool.connection() as connection:  # as rows are that were written before there was the column
        await connection.execute("UPDATE completion_vectors SET question = NULL")
    assert await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.5) == []
    assert await store.cache.exact(run.req_id) is not None


async def test_an_expired_answer_is_gone(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0], cache=CachePolicy(ttl_s=0))
    await settled(store, run, succeeded())
    assert await store.cache.exact(run.req_id) is None
    assert await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0) == []


async def test_hits_do_not_extend_the_life_of_an_answer(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0], cache=CachePolicy(ttl_s=8))
    await settled(store, run, succeeded())
    assert await store.cache.exact(run.req_id) is not None

    async def gone() -> bool:  # asking all the time, which must not matter
        near = await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0)
        return not near and await store.cache.exact(run.req_id) is None

    await until(gone)
