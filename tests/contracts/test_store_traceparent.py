"""The caller's traceparent beside the run, on Postgres and on the double: that of who asked first."""

from serve_app.runs import RunStatus
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import OVER, Store, a_run, failed

FIRST, SECOND = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")


async def test_it_is_kept_with_the_run_that_was_claimed_with_it(store: Store) -> None:
    asked, joining, plain = a_run("1", traceparent=FIRST), a_run("1", traceparent=SECOND), a_run("2")
    assert (await store.runs.claim(asked, lease_s=30)).record.traceparent == FIRST
    joined = await store.runs.claim(joining, lease_s=30)
    assert (joined.claimed, joined.record.traceparent) == (False, FIRST)
    assert (await store.runs.claim(plain, lease_s=30)).record.traceparent is None
    found = await store.runs.find(asked.trace_id)
    assert found is not None
    assert found.traceparent == FIRST


async def test_a_run_that_takes_a_row_over_brings_its_own(store: Store) -> None:
    await store.runs.claim(a_run("1", traceparent=FIRST), lease_s=OVER)
    later = await store.runs.claim(a_run("1", traceparent=SECOND), lease_s=30)
    assert (later.claimed, later.record.traceparent) == (True, SECOND)
    await store.runs.claim(a_run("2", traceparent=FIRST), lease_s=OVER)
    assert (await store.runs.claim(a_run("2"), lease_s=30)).record.traceparent is None


async def test_a_run_that_is_ended_by_others_still_has_it(store: Store) -> None:
    lost = a_run("1", traceparent=FIRST)
    await store.runs.claim(lost, lease_s=OVER)
    (ended,) = await store.runs.end_abandoned(limit=10)
    assert (ended.trace_id, ended.status, ended.traceparent) == (lost.trace_id, RunStatus.FAILED, FIRST)


async def test_the_history_keeps_it(postgres_pool: PostgresPool) -> None:
    runs = PostgresRunStore(postgres_pool)
    before, after = a_run("1", traceparent=FIRST), a_run("1")
    await runs.claim(before, lease_s=30)
    await runs.settle(before, failed(retryable=True))
    assert (await runs.claim(after, lease_s=30)).claimed
    found = await runs.find(before.trace_id)
    assert found is not None
    assert (found.status, found.traceparent) == (RunStatus.FAILED, FIRST)
