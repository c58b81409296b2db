"""The contract of ports.RunStore, held against Postgres and against the double."""

import asyncio
import time
from dataclasses import replace

import pytest

from serve_app.ports import Leases
from serve_app.runs import Outcome, Route, RunStatus, new_trace_id
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.store_cases import CANCELLED, OVER, SKEW_S, USAGE, Store, a_run, an_answer, failed, succeeded


async def test_a_new_key_is_claimed(store: Store) -> None:
    run = a_run()
    before = time.time()
    claim = await store.runs.claim(run, lease_s=30)
    after = time.time()
    assert claim.claimed
    record = claim.record
    assert (record.trace_id, record.req_id, record.key) == (run.trace_id, run.req_id, run.key)
    assert (record.project, record.keyed) == ("p", False)
    assert (record.route, record.model, record.status, record.attempt) == ("direct", "m", RunStatus.RUNNING, 1)
    assert (record.answer, record.error, record.usage, record.dagster_run_id) == (None, None, None, None)
    assert before + 30 - SKEW_S < record.lease_until < after + 30 + SKEW_S
    assert before - SKEW_S < record.created_at < after + SKEW_S
    assert await store.runs.find(run.trace_id) == record


async def test_an_identical_request_attaches_to_the_running_one(store: Store) -> None:
    first, second = a_run(), a_run()
    owner = await store.runs.claim(first, lease_s=30)
    claim = await store.runs.claim(second, lease_s=30)
    assert not claim.claimed
    assert claim.record == owner.record
    assert await store.runs.find(second.trace_id) is None


async def test_claiming_twice_with_one_run_claims_once(store: Store) -> None:
    run = a_run()
    assert (await store.runs.claim(run, lease_s=30)).claimed
    assert not (await store.runs.claim(run, lease_s=30)).claimed


async def test_the_same_key_in_two_projects_is_two_runs(store: Store) -> None:
    assert (await store.runs.claim(a_run(key="k", project="p"), lease_s=30)).claimed
    assert (await store.runs.claim(a_run(key="k", project="q"), lease_s=30)).claimed


async def test_of_fifty_concurrent_claims_one_wins(store: Store) -> None:
    runs = [a_run() for _ in range(50)]
    claims = await asyncio.gather(*(store.runs.claim(run, lease_s=30) for run in runs))
    assert sum(claim.claimed for claim in claims) == 1
    assert len({claim.record.trace_id for claim in claims}) == 1


async def test_of_fifty_concurrent_take_overs_one_wins(store: Store) -> None:
    await store.runs.claim(a_run(), lease_s=OVER)
    claims = await asyncio.gather(*(store.runs.claim(a_run(), lease_s=30) for _ in range(50)))
    assert [claim.record.attempt for claim in claims if claim.claimed] == [2]


@pytest.mark.parametrize("end", [succeeded(), failed(retryable=True), CANCELLED], ids=["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("lease_s", [30, OVER])
async def test_a_key_with_another_body_is_never_claimed(store: Store, end: Outcome, lease_s: float) -> None:
    first = a_run("one", key="k")
    await store.runs.claim(first, lease_s=lease_s)
    while_running = await store.runs.claim(a_run("two", key="k"), lease_s=30)
    assert await store.runs.settle(first, end)
    after = await store.runs.claim(a_run("two", key="k"), lease_s=30)
    assert not while_running.claimed
    assert not after.claimed
    assert after.record.req_id == first.req_id  # so the caller can answer 422


@pytest.mark.parametrize(
    ("key", "end", "claimable"),
    [
        (None, succeeded(), True),
        (None, failed(retryable=False), True),
        (None, failed(retryable=True), True),
        (None, CANCELLED, True),
        ("k", succeeded(), False),
        ("k", failed(retryable=False), False),
        ("k", failed(retryable=True), True),
        ("k", CANCELLED, True),
    ],
)
async def test_which_ended_runs_may_be_repeated(store: Store, key: str | None, end: Outcome, claimable: bool) -> None:
    first = a_run(key=key)
    await store.runs.claim(first, lease_s=30)
    assert await store.runs.settle(first, end)
    second = a_run(key=key)
    claim = await store.runs.claim(second, lease_s=30)
    assert claim.claimed is claimable
    if claimable:
        assert (claim.record.trace_id, claim.record.status, claim.record.attempt) == (second.trace_id, RunStatus.RUNNING, 2)
        assert (claim.record.answer, claim.record.error, claim.record.usage) == (None, None, None)
    else:
        assert (claim.record.trace_id, claim.record.status, claim.record.attempt) == (first.trace_id, end.status, 1)
        assert (claim.record.answer, claim.record.error) == (end.answer, end.error)


@pytest.mark.parametrize(("route", "taken_over"), [("direct", True), ("rag", True), ("workflow", False)])
async def test_a_lease_that_is_over_lets_go_of_gateway_runs_only(store: Store, route: Route, taken_over: bool) -> None:
    await store.runs.claim(a_run(route=route), lease_s=OVER)
    claim = await store.runs.claim(a_run(route=route), lease_s=30)
    assert claim.claimed is taken_over
    assert claim.record.attempt == (2 if taken_over else 1)


async def test_an_extended_lease_holds(store: Store) -> None:
    first = a_run()
    await store.runs.claim(first, lease_s=OVER)
    assert await store.runs.extend_leases([first.trace_id, new_trace_id()], lease_s=30) == Leases(frozenset({first.trace_id}))
    assert not (await store.runs.claim(a_run(), lease_s=30)).claimed
    assert await store.runs.extend_leases([], lease_s=30) == Leases()


async def test_a_lease_can_be_made_shorter(store: Store) -> None:
    run = a_run(route="workflow")
    await store.runs.claim(run, lease_s=600)
    before = time.time()
    await store.runs.extend_leases([run.trace_id], lease_s=30)
    after = time.time()
    record = await store.runs.find(run.trace_id)
    assert record is not None
    assert before + 30 - SKEW_S < record.lease_until < after + 30 + SKEW_S


async def test_a_run_that_lost_its_row_extends_nothing(store: Store) -> None:
    zombie, heir = a_run(), a_run()
    await store.runs.claim(zombie, lease_s=OVER)
    await store.runs.claim(heir, lease_s=30)
    assert await store.runs.extend_leases([zombie.trace_id, heir.trace_id], lease_s=30) == Leases(frozenset({heir.trace_id}))


async def test_abandoned_runs_are_ended_and_others_left_alone(store: Store) -> None:
    abandoned, held, ended = a_run("1", key="k"), a_run("2"), a_run("3")
    await store.runs.claim(abandoned, lease_s=OVER)
    await store.runs.claim(held, lease_s=30)
    await store.runs.claim(ended, lease_s=OVER)
    await store.runs.settle(ended, succeeded())
    [record] = await store.runs.end_abandoned(limit=10)
    assert (record.trace_id, record.status, record.attempt) == (abandoned.trace_id, RunStatus.FAILED, 2)
    assert record.error is not None
    assert (record.error["code"], record.error["type"], record.error["retryable"]) == ("unavailable", "server_error", True)
    assert await store.runs.find(abandoned.trace_id) == record
    assert await store.runs.end_abandoned(limit=10) == []
    assert not await store.runs.settle(abandoned, succeeded(an_answer("late"))), "a zombie settled a run that was ended"
    assert await store.runs.extend_leases([abandoned.trace_id], lease_s=30) == Leases()
    again = await store.runs.claim(a_run("1", key="k"), lease_s=30)
    assert (again.claimed, again.record.attempt) == (True, 3), "the caller's retry with the same key must run"


async def test_a_workflow_run_may_be_left_to_the_queue_for_a_while(store: Store) -> None:
    runs = {route: a_run(route, route=route) for route in ("direct", "rag", "workflow")}
    for run in runs.values():
        await store.runs.claim(run, lease_s=OVER)
    ended = await store.runs.end_abandoned(limit=10, workflow_overdue_s=60)
    assert {record.route for record in ended} == {"direct", "rag"}
    assert [record.route for record in await store.runs.end_abandoned(limit=10)] == ["workflow"]


async def test_the_longest_abandoned_run_is_ended_first_and_no_more_than_asked(store: Store) -> None:
    late, later = a_run("1"), a_run("2")
    await store.runs.claim(late, lease_s=OVER)
    await store.runs.claim(later, lease_s=OVER * 10)
    assert await store.runs.end_abandoned(limit=0) == []
    assert [r.trace_id for r in await store.runs.end_abandoned(limit=1)] == [later.trace_id]
    assert [r.trace_id for r in await store.runs.end_abandoned(limit=1)] == [late.trace_id]


async def test_sweepers_side_by_side_end_each_run_once(store: Store) -> None:
    runs = [a_run(str(n)) for n in range(40)]
    for run in runs:
        await store.runs.claim(run, lease_s=OVER)
    swept: list[str] = []
    while batches := [b for b in await asyncio.gather(*(store.runs.end_abandoned(limit=5) for _ in range(6))) if b]:
        swept += [record.trace_id for batch in batches for record in batch]
    assert sorted(swept) == sorted(run.trace_id for run in runs)


async def test_an_end_that_a_sweeper_recorded_is_noted_until_it_is_told(store: Store) -> None:
    runs = [a_run(str(n)) for n in range(3)]
    for run in runs:
        await store.runs.claim(run, lease_s=OVER)
    await store.runs.settle(runs[2], succeeded())  # its owner tells
    await store.runs.end_abandoned(limit=10)
    swept = {run.trace_id for run in runs[:2]}
    assert await store.runs.take_untold(older_than_s=60, limit=10) == [], "its sweeper is still at it"
    taken = [await store.runs.take_untold(older_than_s=-1, limit=1) for _ in range(2)]
    assert {trace_id for (trace_id,) in taken} == swept, "whoever takes one has it for a while"
    assert await store.runs.take_untold(older_than_s=60, limit=10) == []
    heir = a_run("0")
    assert (await store.runs.claim(heir, lease_s=30)).claimed, "its row goes to another run, its end is still untold"
    await store.runs.mark_told(runs[0].trace_id)
    assert await store.runs.take_untold(older_than_s=-1, limit=10) == [runs[1].trace_id]


async def test_an_ended_run_keeps_its_lease(store: Store) -> None:
    run = a_run(key="k")
    claim = await store.runs.claim(run, lease_s=30)
    await store.runs.settle(run, succeeded())
    await store.runs.extend_leases([run.trace_id], lease_s=300)
    record = await store.runs.find(run.trace_id)
    assert record is not None
    assert record.lease_until == claim.record.lease_until


async def test_a_run_that_lost_its_row_settles_nothing(store: Store) -> None:
    zombie = a_run()
    await store.runs.claim(zombie, lease_s=OVER)
    heir = a_run()
    taken = await store.runs.claim(heir, lease_s=30)
    assert not await store.runs.settle(zombie, succeeded(an_answer("late")))
    assert not await store.runs.settle(replace(heir, attempt=1), succeeded(an_answer("wrong attempt")))
    assert await store.cache.exact(zombie.req_id) is None
    assert await store.runs.find(heir.trace_id) == taken.record
    assert await store.runs.settle(replace(heir, attempt=2), succeeded())


async def test_a_run_is_settled_once(store: Store) -> None:
    run = a_run(key="k")
    await store.runs.claim(run, lease_s=30)
    assert await store.runs.settle(run, succeeded(an_answer("first")))
    assert not await store.runs.settle(run, succeeded(an_answer("second")))
    record = await store.runs.find(run.trace_id)
    hit = await store.cache.exact(run.req_id)
    assert record is not None
    assert hit is not None
    assert record.status is RunStatus.SUCCEEDED
    assert record.usage == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert record.answer == hit.answer == an_answer("first")


async def test_an_unknown_run_settles_nothing(store: Store) -> None:
    assert not await store.runs.settle(a_run(), succeeded())


async def test_running_is_no_outcome(store: Store) -> None:
    with pytest.raises(ValueError, match="no end"):
        await store.runs.settle(a_run(), Outcome(status=RunStatus.RUNNING, reason="stop", usage=USAGE))


async def test_a_failure_is_recorded_whole(store: Store) -> None:
    run = a_run()
    await store.runs.claim(run, lease_s=30)
    await store.runs.settle(run, failed(retryable=True))
    record = await store.runs.find(run.trace_id)
    assert record is not None
    assert (record.status, record.error, record.answer) == (RunStatus.FAILED, failed(retryable=True).error, None)


async def test_find_looks_only_inside_the_project(store: Store) -> None:
    run = a_run(project="p")
    await store.runs.claim(run, lease_s=30)
    assert await store.runs.find(run.trace_id, project="p") is not None
    assert await store.runs.find(run.trace_id, project="q") is None
    assert await store.runs.find(new_trace_id()) is None


async def test_the_dagster_run_is_remembered(store: Store) -> None:
    run = a_run(route="workflow")
    await store.runs.claim(run, lease_s=30)
    await store.runs.note_dagster_run(run.trace_id, "d-1")
    await store.runs.note_dagster_run(new_trace_id(), "d-2")
    record = await store.runs.find(run.trace_id)
    assert record is not None
    assert record.dagster_run_id == "d-1"


async def test_an_answer_that_came_while_the_request_was_on_its_way_is_shared(store: Store) -> None:
    first, second = a_run(), a_run()
    await store.runs.claim(first, lease_s=30)
    assert await store.runs.settle(first, succeeded())
    claim = await store.runs.claim(second, lease_s=30)
    assert not claim.claimed
    assert claim.record.trace_id == first.trace_id
    assert claim.record.answer is not None


async def test_a_replaced_run_is_still_found_by_its_name(postgres_pool: PostgresPool) -> None:
    store = PostgresRunStore(postgres_pool)
    first = a_run()
    await store.claim(first, lease_s=30)
    assert await store.settle(first, succeeded())
    second = a_run()
    assert (await store.claim(second, lease_s=30)).claimed
    past = await store.find(first.trace_id, project=first.project)
    assert past is not None
    assert past.status is RunStatus.SUCCEEDED
    assert past.answer is not None
    assert (await store.find(second.trace_id)) is not None
    assert await store.find(first.trace_id, project="another") is None


async def test_purge_forgets_what_is_old_and_nothing_else(store: Store) -> None:
    ended, running = a_run(), a_run(text="still running")
    for run in (ended, running):
        await store.runs.claim(run, lease_s=30)
    assert await store.runs.settle(ended, succeeded())
    await store.runs.purge(older_than_s=3600, limit=10)
    assert await store.runs.find(ended.trace_id) is not None
    await store.runs.purge(older_than_s=-1, limit=10)
    assert await store.runs.find(ended.trace_id) is None
    assert await store.runs.find(running.trace_id) is not None
