"""The end of a run in Postgres: what is charged and what is kept go with it, or nothing does."""

import asyncio
import time
from dataclasses import replace

from serve_app.runs import new_trace_id
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


async def test_an_answer_that_is_refreshed_while_it_is_deleted_stands_in_nobodys_way(postgres_dsn: str) -> None:
    pool = PostgresPool(postgres_dsn)
    store, cache = PostgresRunStore(pool), PostgresAnswerCache(pool)
    run = replace(a_run(), embedding=[1.0, 0.0])
    await store.claim(run, lease_s=60)
    assert await store.settle(run, succeeded())
    again = replace(run, trace_id=new_trace_id(), started=time.time() + 60)
    assert (await store.claim(again, lease_s=60)).claimed
    again = replace(again, attempt=2)
    async with pool.transaction() as deleting:
        # Those who delete take the answer first, and then its vector: so must whoever writes both.
        await deleting.execute("SELECT FROM completions_cache WHERE req_id = $1 FOR UPDATE", run.req_id)
        settling = asyncio.ensure_future(store.settle(again, succeeded()))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(30):
            while not await deleting.fetchval(waiting):
                await asyncio.sleep(0.01)
        await deleting.execute("DELETE FROM completion_vectors WHERE req_id = $1", run.req_id)
        await deleting.execute("DELETE FROM completions_cache WHERE req_id = $1", run.req_id)
    assert await settling
    assert len(await cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.5)) == 1
    await pool.close()
