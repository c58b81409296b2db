"""The end of a run in Postgres: what is charged and what is kept go with it, or nothing does."""

from dataclasses import replace

from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.limit_office import LEASE_S, Office, outcome_of
from tests.contracts.limit_office import a_run as run_of_account
from tests.contracts.store_cases import a_run, succeeded


async def test_a_run_that_comes_from_the_queue_is_charged(office: Office) -> None:
    account = await office.account(tokens=100, period="day")
    run = run_of_account(account)
    await office.stores[0].claim(run, lease_s=LEASE_S)
    queued = replace(run, key_id=None)  # as the worker gets it
    assert await office.stores[1].settle(queued, outcome_of(30))
    assert await office.used(f"key:{account.key_id}") == 30


async def test_a_late_attempt_leaves_nothing_in_the_cache(postgres_pool: PostgresPool) -> None:
    store, cache = PostgresRunStore(postgres_pool), PostgresAnswerCache(postgres_pool)
    run = replace(a_run(), embedding=[1.0, 0.0])
    await store.claim(run, lease_s=60)
    assert not await store.settle(replace(run, attempt=2), succeeded())
    assert await cache.exact(run.req_id) is None
    assert await cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.5) == []
    assert await store.settle(run, succeeded())
    assert await cache.exact(run.req_id) is not None
    assert len(await cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.5)) == 1
