"""Runs at once of keys and projects: shared exactly by gateways, and free again whatever becomes of a run."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from serve_app.errors import RateLimited
from serve_app.limits import Limits, key_subject, project_subject
from serve_app.runs import new_trace_id
from tests.contracts.limit_office import LEASE_S, Office, a_run, open_office, outcome_of


async def test_gateways_share_the_places_exactly(office: Office) -> None:
    account = await office.account(concurrent_runs=3)
    runs = [a_run(account) for _ in range(24)]
    claims = await asyncio.gather(
        *(office.stores[n % 2].claim(run, lease_s=LEASE_S) for n, run in enumerate(runs)), return_exceptions=True
    )
    owned = [run for run, claim in zip(runs, claims, strict=True) if not isinstance(claim, BaseException)]
    assert len(owned) == 3
    for claim in claims:
        if isinstance(claim, BaseException):
            assert isinstance(claim, RateLimited)
            assert claim.code == "concurrency_limit_exceeded"
            assert "this API key may have 3 runs at once" in claim.message
    # Who was refused has left nothing behind.
    assert await office.sql("SELECT count(*) FROM idempotency_log") == 3
    assert await office.stores[0].settle(owned[0], outcome_of(5))
    assert (await office.stores[1].claim(a_run(account), lease_s=LEASE_S)).claimed


async def test_places_of_a_project_are_shared_by_its_keys(office: Office) -> None:
    one, other = await office.account(), await office.account(concurrent_runs=5)
    await office.meter.set_of_project("blue", Limits(concurrent_runs=2))
    assert (await office.stores[0].claim(a_run(one), lease_s=LEASE_S)).claimed
    assert (await office.stores[0].claim(a_run(other), lease_s=LEASE_S)).claimed
    with pytest.raises(RateLimited, match="project 'blue' may have 2 runs at once"):
        await office.stores[0].claim(a_run(other), lease_s=LEASE_S)
    elsewhere = await office.account("green", concurrent_runs=1)
    assert (await office.stores[0].claim(a_run(elsewhere), lease_s=LEASE_S)).claimed


async def test_a_run_whose_gateway_died_leaves_its_place_with_its_lease(office: Office) -> None:
    account = await office.account(concurrent_runs=1)
    lost = a_run(account)
    assert (await office.stores[0].claim(lost, lease_s=LEASE_S)).claimed
    with pytest.raises(RateLimited):
        await office.stores[1].claim(a_run(account), lease_s=LEASE_S)
    await office.stores[0].extend_leases([lost.trace_id], lease_s=0)
    assert (await office.stores[1].claim(a_run(account), lease_s=LEASE_S)).claimed


async def test_who_joins_a_run_needs_no_place(office: Office) -> None:
    account = await office.account(concurrent_runs=1)
    run = a_run(account, "same")
    assert (await office.stores[0].claim(run, lease_s=LEASE_S)).claimed
    joined = await office.stores[1].claim(a_run(account, "same"), lease_s=LEASE_S)
    assert not joined.claimed
    assert joined.record.trace_id == run.trace_id


async def test_whoever_takes_a_run_over_pays_for_it(office: Office) -> None:
    first, second = await office.account(tokens=100, period="day"), await office.account(tokens=100, period="day")
    lost = a_run(first, "same")
    await office.stores[0].claim(lost, lease_s=0)
    await asyncio.sleep(0.01)  # a lease is over once it lies in the past
    run = a_run(second, "same")
    claim = await office.stores[1].claim(run, lease_s=LEASE_S)
    assert claim.claimed
    assert not await office.stores[0].settle(lost, outcome_of(50))
    assert await office.stores[1].settle(replace(run, attempt=claim.record.attempt), outcome_of(20))
    assert await office.used(key_subject(first.key_id)) == 0
    assert await office.used(key_subject(second.key_id)) == 20


async def test_places_without_a_run_count_with_the_runs(office: Office) -> None:
    account = await office.account(concurrent_runs=2)
    async with office.meters[0].place(account, new_trace_id(), for_s=60):
        run = a_run(account)
        assert (await office.stores[0].claim(run, lease_s=LEASE_S)).claimed
        with pytest.raises(RateLimited):
            await office.stores[1].claim(a_run(account), lease_s=LEASE_S)
        with pytest.raises(RateLimited):
            async with office.meters[1].place(account, new_trace_id(), for_s=60):
                raise AssertionError("there were only two places")
    async with office.meters[1].place(account, new_trace_id(), for_s=60):
        assert await office.sql("SELECT count(*) FROM passing_places") == 1
    assert await office.sql("SELECT count(*) FROM passing_places") == 0


async def test_a_place_of_a_gateway_that_died_ends_by_itself(office: Office) -> None:
    account = await office.account(concurrent_runs=1)
    place = office.meter.place(account, new_trace_id(), for_s=60)
    await place.__aenter__()  # and nobody leaves it
    with pytest.raises(RateLimited):
        await office.stores[0].claim(a_run(account), lease_s=LEASE_S)
    await office.sql("UPDATE passing_places SET until = now() - interval '1 second'")
    assert (await office.stores[0].claim(a_run(account), lease_s=LEASE_S)).claimed
    await place.__aexit__(None, None, None)


async def test_nobody_waits_for_a_place_that_another_is_leaving(office: Office) -> None:
    one, other = await office.account("green", concurrent_runs=1), await office.account(concurrent_runs=1)
    lost = office.meter.place(one, new_trace_id(), for_s=60)
    await lost.__aenter__()
    await office.sql("UPDATE passing_places SET until = now() - interval '1 second'")
    async with office.pools[1].transaction() as leaving:
        await leaving.execute("SELECT FROM passing_places FOR UPDATE")
        async with office.meter.place(other, new_trace_id(), for_s=60):
            assert await office.sql("SELECT count(*) FROM passing_places") == 2
    async with office.meter.place(other, new_trace_id(), for_s=60):
        assert await office.sql("SELECT count(*) FROM passing_places") == 1, "what is over is swept"
    await lost.__aexit__(None, None, None)


async def test_who_waits_for_a_limit_leaves_connections_to_the_others(postgres_dsn: str) -> None:
    async with open_office(postgres_dsn, timeout_s=60) as office, asyncio.timeout(60):
        limited = await office.account(concurrent_runs=50, requests_per_minute=100)
        assert (await office.meter.enter(limited)).refusal is None

        async def pass_through() -> None:
            async with office.meter.place(limited, new_trace_id(), for_s=60):
                pass

        async with asyncio.TaskGroup() as group, office.pools[1].transaction() as other:
            await other.execute("SELECT FROM limits FOR UPDATE")
            await other.execute("SELECT FROM request_rates FOR UPDATE")
            waiting: list[asyncio.Task[Any]] = []
            for _ in range(6):
                waiting.append(group.create_task(office.stores[0].claim(a_run(limited), lease_s=LEASE_S)))
                waiting.append(group.create_task(office.meters[0].enter(limited)))
                waiting.append(group.create_task(pass_through()))
            while await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:
                await asyncio.sleep(0.02)
            async with asyncio.timeout(20):
                free = replace(a_run(limited), key_id=None)
                assert (await office.stores[0].claim(free, lease_s=LEASE_S)).claimed
            assert not any(task.done() for task in waiting)
        assert await office.sql("SELECT count(*) FROM idempotency_log") == 7
        assert await office.sql("SELECT count(*) FROM passing_places") == 0


async def test_claims_settles_and_requests_do_not_lock_each_other_out(office: Office) -> None:
    """All of it at once, over and over; a deadlock would end one of them with an error after a second."""
    account = await office.account(concurrent_runs=50, tokens=10**9, period="day", requests_per_minute=100_000)
    await office.meter.set_of_project("blue", Limits(concurrent_runs=50, tokens=10**9, period="month", requests_per_minute=10**5))

    async def work(number: int) -> int:
        settled = 0
        for turn in range(6):
            store = office.stores[number % 2]
            assert (await office.meters[turn % 2].enter(account)).refusal is None
            run = a_run(account, f"shared {turn}" if number % 2 else None)
            claim = await store.claim(run, lease_s=LEASE_S)
            if claim.claimed:
                assert await store.settle(replace(run, attempt=claim.record.attempt), outcome_of(2))
                settled += 1
        return settled

    settled = sum(await asyncio.gather(*(work(number) for number in range(12))))
    assert settled >= 36  # nobody shares the questions of every other one
    assert await office.used(project_subject("blue")) == 2 * settled
