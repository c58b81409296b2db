"""What becomes of a run whose row the next run of its question takes over."""

import asyncio

from serve_app.runs import RunStatus
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import a_run, failed

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_a_run_that_ends_while_it_is_claimed_is_still_found(postgres_pool: PostgresPool) -> None:
    runs = PostgresRunStore(postgres_pool)
    first, second = a_run(), a_run()
    await runs.claim(first, lease_s=30)
    # The transaction is the inner one: it commits, and lets the claim go on, before the group waits for it.
    async with asyncio.timeout(20), asyncio.TaskGroup() as group, postgres_pool.transaction() as settling:
        await settling.execute(
            "UPDATE idempotency_log SET status = 'failed', error = $2, retryable = true WHERE trace_id = $1",
            first.trace_id,
            failed(retryable=True).error,
        )
        claiming = group.create_task(runs.claim(second, lease_s=30))
        async with postgres_pool.connection() as watching:
            while not await watching.fetchval(_WAITING):
                await asyncio.sleep(0.01)
    claim = claiming.result()
    assert claim.claimed
    assert (claim.record.trace_id, claim.record.attempt) == (second.trace_id, 2)
    earlier = await runs.find(first.trace_id)
    assert earlier is not None
    assert earlier.status is RunStatus.FAILED
