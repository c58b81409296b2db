"""The contract of ports.RunStore and ports.AnswerCache, held against Postgres and against the doubles."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from serve_app.events import ChoiceEnd, DebateReport, TaskReport, Usage
from serve_app.ports import AnswerCache, RunStore
from serve_app.runs import Answer, CachePolicy, Outcome, Question, Route, Run, RunStatus, new_trace_id
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore
from serve_app.store.run_log import PostgresRunStore

USAGE = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
OVER = -1.0  # a lease that is over as soon as it is given


@dataclass(frozen=True)
class Store:
    runs: RunStore
    cache: AnswerCache


@pytest.fixture(params=["postgres", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        cache = InMemoryAnswerCache()
        return Store(InMemoryRunStore(cache), cache)
    pool = request.getfixturevalue("postgres_pool")
    return Store(PostgresRunStore(pool), PostgresAnswerCache(pool))


def a_run(
    text: str = "What is up?",
    *,
    key: str | None = None,
    route: Route = "direct",
    system: str = "",
    project: str = "p",
    **fields: Any,
) -> Run:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    question = Question(project=project, route=route, model="m", adapter=None, messages=messages, params={"temperature": 0.5})
    run = Run(
        trace_id=new_trace_id(),
        req_id=question.req_id,
        key=key or question.req_id,
        keyed=key is not None,
        question=question,
        deadline=time.time() + 60,
    )
    return replace(run, **fields)


def an_answer(text: str = "The sky.", finish_reason: str = "stop", **message: Any) -> Answer:
    return Answer(
        model="m",
        messages=({"role": "assistant", "zz": 1.0, "content": text, "a": None, **message},),
        ends=(ChoiceEnd(finish_reason=finish_reason, stop_reason=2),),
        usage=USAGE,
        winner="m",
        debate=DebateReport(winner="m", strategy="judge", rounds=1, stop_reason="", tasks=(TaskReport(task="A", model="m"),)),
        logprobs=({"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]},),
        extra={"system_fingerprint": "f"},
    )


def succeeded(answer: Answer | None = None) -> Outcome:
    return Outcome(status=RunStatus.SUCCEEDED, reason="stop", usage=USAGE, answer=answer or an_answer())


def failed(*, retryable: bool) -> Outcome:
    error = {"message": "it broke \x00", "type": "server_error", "param": None, "code": "upstream_failed", "retryable": retryable}
    return Outcome(status=RunStatus.FAILED, reason="error", usage=USAGE, error=error)


CANCELLED = Outcome(status=RunStatus.CANCELLED, reason="cancelled", usage=USAGE)


async def test_a_new_key_is_claimed(store: Store) -> None:
    run = a_run()
    before = time.time()
    claim = await store.runs.claim(run, lease_s=30)
    assert claim.claimed
    record = claim.record
    assert (record.trace_id, record.req_id, record.key) == (run.trace_id, run.req_id, run.key)
    assert (record.project, record.keyed) == ("p", False)
    assert (record.route, record.model, record.status, record.attempt) == ("direct", "m", RunStatus.RUNNING, 1)
    assert (record.answer, record.error, record.usage, record.dagster_run_id) == (None, None, None, None)
    assert record.lease_until == pytest.approx(before + 30, abs=5)
    assert record.created_at == pytest.approx(before, abs=5)
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
    first, second = a_run(key=key), a_run(key=key)
    await store.runs.claim(first, lease_s=30)
    assert await store.runs.settle(first, end)
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
    await store.runs.extend_leases([first.trace_id, new_trace_id()], lease_s=30)
    assert not (await store.runs.claim(a_run(), lease_s=30)).claimed
    await store.runs.extend_leases([], lease_s=30)


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


async def settled(store: Store, run: Run, outcome: Outcome) -> None:
    claim = await store.runs.claim(run, lease_s=30)
    assert claim.claimed
    assert await store.runs.settle(replace(run, attempt=claim.record.attempt), outcome)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - nothing in a database can be awaited but an answer
            await asyncio.sleep(0.02)


async def test_an_answer_comes_back_exactly_and_by_meaning(store: Store) -> None:
    answer = an_answer("naïve \x00 ☃ \U0001f600", reasoning_content="", deep={"b": [1, 1.0, 1e-9, None, True], "a": {}})
    run = a_run(embedding=[0.6, 0.8])
    await settled(store, run, succeeded(answer))
    exact = await store.cache.exact(run.req_id)
    near = await store.cache.nearest(run.question.scope, [0.8, 0.6], threshold=0.9)
    assert exact is not None
    assert near is not None
    assert exact.answer == near.answer == answer
    assert str(exact.answer) == str(answer)  # the order of keys too: a replay is byte for byte
    assert (exact.trace_id, exact.req_id, exact.similarity) == (run.trace_id, run.req_id, 1.0)
    assert near.similarity == pytest.approx(0.96, abs=0.002)
    assert exact.created_at == pytest.approx(time.time(), abs=5)


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
    assert await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0) is None


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
    near = await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.92)
    assert exact is not None
    assert near is not None
    assert (exact.answer.text, exact.trace_id, near.answer.text) == ("new", newer.trace_id, "new")


async def test_another_scope_never_hits(store: Store) -> None:
    run, other = a_run(system="Be kind.", embedding=[1.0, 0.0]), a_run(system="Be rude.", embedding=[1.0, 0.0])
    assert run.question.scope != other.question.scope
    await settled(store, run, succeeded())
    assert await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0.92) is not None
    assert await store.cache.nearest(other.question.scope, [1.0, 0.0], threshold=0) is None


async def test_the_nearest_wins_and_the_threshold_holds(store: Store) -> None:
    near, far = a_run("near", embedding=[0.6, 0.8]), a_run("far", embedding=[0.0, 1.0])
    await settled(store, far, succeeded())
    await settled(store, near, succeeded())
    hit = await store.cache.nearest(near.question.scope, [0.8, 0.6], threshold=0.92)
    assert hit is not None
    assert hit.req_id == near.req_id
    assert await store.cache.nearest(near.question.scope, [0.8, 0.6], threshold=0.97) is None


async def test_threshold_zero_is_a_value(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0])
    await settled(store, run, succeeded())
    at_right_angles = await store.cache.nearest(run.question.scope, [0.0, 1.0], threshold=0.0)
    assert at_right_angles is not None
    assert at_right_angles.similarity == 0
    assert await store.cache.nearest(run.question.scope, [-1.0, 0.0], threshold=0.0) is None


async def test_vectors_of_another_model_are_passed_over(store: Store) -> None:
    run, wider = a_run("two", embedding=[1.0, 0.0]), a_run("three", embedding=[1.0, 0.0, 0.0])
    await settled(store, run, succeeded())
    await settled(store, wider, succeeded())
    hit = await store.cache.nearest(run.question.scope, [1.0, 0.0, 0.0], threshold=0.9)
    assert hit is not None
    assert hit.req_id == wider.req_id


async def test_an_expired_answer_is_gone(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0], cache=CachePolicy(ttl_s=0))
    await settled(store, run, succeeded())
    assert await store.cache.exact(run.req_id) is None
    assert await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0) is None


async def test_hits_do_not_extend_the_life_of_an_answer(store: Store) -> None:
    run = a_run(embedding=[1.0, 0.0], cache=CachePolicy(ttl_s=1))
    await settled(store, run, succeeded())
    began = time.monotonic()
    assert await store.cache.exact(run.req_id) is not None

    async def gone() -> bool:  # asking all the time, which must not matter
        near = await store.cache.nearest(run.question.scope, [1.0, 0.0], threshold=0)
        return near is None and await store.cache.exact(run.req_id) is None

    await until(gone)
    assert time.monotonic() - began < 5
