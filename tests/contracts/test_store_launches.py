"""The table `launches` holds prompts: what becomes of its rows."""

from serve_app.runs import new_trace_id
from serve_app.store.launches import PostgresLaunches
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import a_run, succeeded


async def test_a_purge_forgets_prompts_of_runs_that_no_worker_looks_after(postgres_pool: PostgresPool) -> None:
    """Also when the workers that launched them are gone for good: debate_launch was set back to warm."""
    store, launches = PostgresRunStore(postgres_pool), PostgresLaunches(postgres_pool)
    running, ended = a_run(), a_run(text="another")
    for run in (running, ended):
        await store.claim(run, lease_s=30)
    assert await store.settle(ended, succeeded())
    unknown = new_trace_id()
    for trace_id in (running.trace_id, ended.trace_id, unknown):
        await launches.put(trace_id, b"a prompt")
    await store.purge(older_than_s=3600, limit=10)
    kept = [name for name in (running.trace_id, ended.trace_id, unknown) if await launches.find(name) is not None]
    assert kept == [running.trace_id]
