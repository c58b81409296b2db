"""The contract of trust.CacheTrust, held against Postgres and against the double."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from serve_app.ports import CacheHit
from serve_app.runs import Run
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.memory import InMemoryAnswerCache
from serve_app.store.memory_trust import InMemoryCacheTrust
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from serve_app.store.trust import PostgresCacheTrust
from serve_app.trust import CacheTrust, Trust
from tests.contracts.store_cases import Store, a_run, an_answer, succeeded


def trust_of(store: Store) -> CacheTrust:
    if isinstance(store.cache, InMemoryAnswerCache):
        return InMemoryCacheTrust(store.cache)
    assert isinstance(store.runs, PostgresRunStore)
    return PostgresCacheTrust(store.runs._pool)


async def kept(store: Store, text: str, embedding: list[float]) -> Run:
    run = a_run(text, embedding=embedding)
    claim = await store.runs.claim(run, lease_s=30)
    assert await store.runs.settle(replace(run, attempt=claim.record.attempt), succeeded(an_answer(text)))
    return run


async def near(store: Store, run: Run, threshold: float = 0) -> Sequence[CacheHit]:
    return await store.cache.nearest(run.question.scope, [0.8, 0.6], threshold=threshold)


async def test_a_refuted_answer_is_given_to_nobody_and_its_scope_wants_more(store: Store) -> None:
    trust = trust_of(store)
    run = await kept(store, "What is up?", [0.6, 0.8])  # 0.96
    other = await kept(store, "What is down?", [0.7, 0.714])  # 0.988
    (first, second) = await near(store, run)
    assert (first.req_id, second.req_id) == (other.req_id, run.req_id)
    assert await trust.refute(run.question.scope, second, reason="it said something else")
    assert await store.cache.exact(run.req_id) is None
    assert [hit.req_id for hit in await near(store, run)] == [other.req_id], "what is nearer than the refuted one stays"
    found = await trust.trust(run.question.scope)
    assert found.least_similarity == pytest.approx(second.similarity + 0.005)
    assert (found.confirmed, found.refuted) == (0, 1)
    assert await trust.refute(run.question.scope, first, reason="this one too")
    assert await near(store, run) == []
    third = await kept(store, "What is sideways?", [0.6, 0.8])
    assert await near(store, third) == [], "a threshold of 0 asks for less than the scope is trusted with"
    assert (await trust.trust(run.question.scope)).least_similarity > 0.99
    elsewhere = a_run("What is up?", system="another scope", embedding=[0.6, 0.8])
    await store.runs.claim(elsewhere, lease_s=30)
    await store.runs.settle(elsewhere, succeeded())
    assert len(await near(store, elsewhere)) == 1
    assert await trust.trust(elsewhere.question.scope) == Trust()


async def test_an_answer_that_was_replaced_meanwhile_is_not_quarantined(store: Store) -> None:
    trust, run = trust_of(store), await kept(store, "What is up?", [0.6, 0.8])
    (old,) = await near(store, run)
    await kept(store, "What is up?", [0.6, 0.8])
    assert not await trust.refute(run.question.scope, old, reason="too late")
    assert await store.cache.exact(run.req_id) is not None
    assert (await trust.trust(run.question.scope)).refuted == 1


async def test_confirmations_lower_the_share_and_a_refutation_sets_them_back(store: Store) -> None:
    trust, run = trust_of(store), await kept(store, "What is up?", [0.6, 0.8])
    shares = []
    for _ in range(17):
        shares.append((await trust.trust(run.question.scope)).share)
        await trust.confirm(run.question.scope)
    assert (shares[0], shares[7], shares[8], shares[16]) == (1, 1, 0.5, 0.25)
    assert Trust(confirmed=10_000).share == 1 / 16, "never quite unwatched"
    (hit,) = await near(store, run)
    await trust.refute(run.question.scope, hit, reason="it said something else")
    assert (await trust.trust(run.question.scope)).share == 1


async def test_scopes_without_answers_are_forgotten(postgres_pool: PostgresPool) -> None:
    store = Store(PostgresRunStore(postgres_pool), PostgresAnswerCache(postgres_pool))
    trust, run = trust_of(store), await kept(store, "What is up?", [0.6, 0.8])
    gone = a_run("gone", system="no answers")
    for scope in (run.question.scope, gone.question.scope):
        await trust.confirm(scope)
    await store.runs.purge(older_than_s=3600, limit=10)
    assert (await trust.trust(gone.question.scope)).confirmed == 1, "not before its time"
    await store.runs.purge(older_than_s=-1, limit=10)
    assert (await trust.trust(gone.question.scope)).confirmed == 0
    assert (await trust.trust(run.question.scope)).confirmed == 1
