"""Cancels in the log, on Postgres and on the double: a request to stop waits for whoever owns the run, or will."""

import pytest

from serve_app.ports import Leases
from serve_app.runs import RunStatus, new_trace_id
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import OVER, Store, a_run, succeeded


async def test_the_owner_hears_of_a_cancel_when_it_extends_the_lease(store: Store) -> None:
    asked, left_alone = a_run("1"), a_run("2")
    for run in (asked, left_alone):
        assert (await store.runs.claim(run, lease_s=30)).record.cancel_reason is None
    await store.runs.request_cancel(asked.trace_id, "enough")
    await store.runs.request_cancel(asked.trace_id, "and again")
    leases = await store.runs.extend_leases([asked.trace_id, left_alone.trace_id], lease_s=30)
    assert leases == Leases(frozenset({asked.trace_id, left_alone.trace_id}), {asked.trace_id: "enough"})
    record = await store.runs.find(asked.trace_id)
    assert record is not None
    assert (record.status, record.attempt, record.cancel_reason) == (RunStatus.RUNNING, 1, "enough")
    claim = await store.runs.claim(a_run("1"), lease_s=30)
    assert (claim.claimed, claim.record.cancel_reason) == (False, "enough")


async def test_a_run_that_has_ended_is_not_cancelled(store: Store) -> None:
    run = a_run(key="k")
    await store.runs.claim(run, lease_s=30)
    await store.runs.settle(run, succeeded())
    before = await store.runs.find(run.trace_id)
    await store.runs.request_cancel(run.trace_id, "too late")
    await store.runs.request_cancel(new_trace_id(), "who is that")
    assert await store.runs.find(run.trace_id) == before


async def test_a_cancelled_run_whose_owner_fell_silent_ends_as_cancelled(store: Store) -> None:
    asked, lost = a_run("1", key="1", route="workflow"), a_run("2", key="2", route="workflow")
    reason = 'he said "stop"\n\\ ünd \U0001f6d1'
    for run in (asked, lost):
        await store.runs.claim(run, lease_s=OVER)
    await store.runs.request_cancel(asked.trace_id, reason)
    ended = {record.trace_id: record for record in await store.runs.end_abandoned(limit=10)}
    assert (ended[asked.trace_id].status, ended[lost.trace_id].status) == (RunStatus.CANCELLED, RunStatus.FAILED)
    error = ended[asked.trace_id].error
    assert error is not None
    assert (error["message"], error["code"], error["status"]) == (f"the run was cancelled: {reason}", "cancelled", 499)
    assert ended[asked.trace_id].attempt == 2
    assert not await store.runs.settle(asked, succeeded()), "a zombie settled a run that was ended"
    assert await store.runs.extend_leases([asked.trace_id], lease_s=30) == Leases()


@pytest.mark.parametrize("ended", [True, False])
async def test_whoever_takes_the_row_over_was_not_cancelled(store: Store, ended: bool) -> None:
    first, heir = a_run(), a_run()
    await store.runs.claim(first, lease_s=OVER)
    await store.runs.request_cancel(first.trace_id, "enough")
    if ended:
        await store.runs.end_abandoned(limit=1)
    claim = await store.runs.claim(heir, lease_s=30)
    assert (claim.claimed, claim.record.cancel_reason) == (True, None)
    await store.runs.request_cancel(first.trace_id, "of the run before")
    assert await store.runs.extend_leases([heir.trace_id], lease_s=30) == Leases(frozenset({heir.trace_id}))


async def test_postgres_keeps_the_reason_in_the_history_and_takes_any_text(postgres_pool: PostgresPool) -> None:
    store, first = PostgresRunStore(postgres_pool), a_run()
    await store.claim(first, lease_s=OVER)
    await store.request_cancel(first.trace_id, "a\x00b")
    await store.end_abandoned(limit=1)
    assert (await store.claim(a_run(), lease_s=30)).claimed
    past = await store.find(first.trace_id)
    assert past is not None
    assert (past.status, past.cancel_reason) == (RunStatus.CANCELLED, "a\ufffdb")
