"""Rounds, stragglers, budget and time of a debate, and its four strategies, as the warm worker holds them."""

import asyncio
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance

from dagster_project.ops import POOL
from serve_app.errors import BadRequest, UpstreamFailed
from serve_app.events import DebateReport, EventBody, FinishedEvent, ProgressEvent, TokenEvent
from serve_app.settings import Settings
from tests.integration.dagster_stand import Script, ScriptedReplicas, Stand, bodies


@pytest.fixture
def place(settings: Settings, instance: DagsterInstance) -> Stand:
    return Stand(settings, instance, ScriptedReplicas())


async def hold(place: Stand, **asked: Any) -> list[EventBody]:
    """Hold one debate and return what was told of it, after the worker has come to rest."""
    async with place.working() as pulls:
        told = bodies(await place.events(await place.submit(**asked)))
        await place.until_quiet(pulls)
    return told


def end_of(told: list[EventBody]) -> FinishedEvent:
    assert isinstance(told[-1], FinishedEvent)
    return told[-1]


def report_of(told: list[EventBody]) -> DebateReport:
    end = end_of(told)
    assert end.debate is not None, end.error
    return end.debate


def content(told: list[EventBody]) -> list[str]:
    return [body.text for body in told if isinstance(body, TokenEvent) and body.task is None]


async def test_debaters_hear_each_other_and_answer_again(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "A_r2": Script(("Paris",)), "judge": Script(("A",))}
    async with place.working() as pulls:
        run = await place.submit(rounds=3)
        told = bodies(await place.events(run))
        await place.until_quiet(pulls)
    assert sorted(place.replicas.calls) == ["A", "A-r2", "B", "B-r2", "C", "C-r2"], "they agree: no third round, no judge"
    heard = str(place.replicas.bodies["A-r2"]["messages"])
    assert "Paris" in heard
    assert "Lyon" not in heard, "a debater is not told its own answer"
    tokens = [body for body in told if isinstance(body, TokenEvent) and body.task == "A"]
    assert [(token.round, token.text) for token in tokens] == [(1, "Lyon"), (2, "Paris")]
    steps = [(body.step, body.done) for body in told if isinstance(body, ProgressEvent)]
    assert steps[4:8] == [("round_2", done) for done in range(4)]
    report = report_of(told)
    assert (report.rounds, report.stop_reason) == (2, "agreement")
    assert [task.usage.completion_tokens for task in report.tasks] == [2, 2, 2], "the sum of the rounds"
    child = await place.dagster_run(run)
    started = await asyncio.to_thread(place.instance.all_logs, child.run_id, DagsterEventType.STEP_START)
    wanted = {"plan", "review_1", "review_2", "decide", "commit"} | {f"{s}[{t}]" for s in ("argue", "argue_2") for t in "ABC"}
    assert {log.step_key for log in started} == wanted, "each task and each round is a step of its own"


async def test_the_last_round_is_the_last(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "C": Script(("Rome",)), "judge": Script(("Paris",))}
    told = await hold(place, rounds=3)
    assert (report_of(told).rounds, report_of(told).stop_reason) == (3, "verdict")
    assert content(told) == ["Paris"]


async def test_a_straggler_is_cut_once_enough_have_answered(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "C": Script(("slow ",), hangs=True), "judge": Script(("Paris",))}
    told = await hold(place, quorum=2, straggler_s=3)
    assert place.replicas.open == 0, "its replica still works for nobody"
    report = report_of(told)
    assert (report.winner, [task.finish_reason for task in report.tasks]) == ("B", ["stop", "stop", "cancelled"])
    assert report.tasks[2].usage.completion_tokens == 1, "what it took is told"
    assert [vote.order for vote in report.votes] == [("A", "B"), ("B", "A")], "the judge reads only whole answers"


async def test_rounds_end_in_time_for_the_judge(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "C": Script(hangs=True), "judge": Script(("Paris",))}
    told = await hold(place, timeout_s=36, closing_share=0.75, rounds=3)
    assert (report_of(told).rounds, report_of(told).winner) == (1, "B"), "no time for another round"
    assert end_of(told).reason == "stop"


async def test_when_nobody_answers_in_time_the_clock_is_named(place: Stand) -> None:
    place.replicas.scripts = {label: Script((), hangs=True) for label in "ABC"}
    told = await hold(place, timeout_s=8, closing_share=0.75)
    assert (end_of(told).error or {})["code"] == "deadline_exceeded"


async def test_a_token_budget_bounds_each_call(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "C": Script(("Rome",)), "judge": Script(("Paris",))}
    told = await hold(place, token_budget=60, rounds=3)
    limits = [place.replicas.bodies[label]["max_tokens"] for label in "ABC"]
    assert limits == [limits[0]] * 3
    assert 0 < limits[0] <= 20
    assert report_of(told).stop_reason == "verdict"


async def test_vote(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",))}
    report = report_of(await hold(place, strategy="vote"))
    assert (report.winner, report.stop_reason) == ("B", "most_votes")
    assert sorted(place.replicas.calls) == ["A", "B", "C"]


async def test_consensus_is_the_nearest_answer(place: Stand) -> None:
    places = {"Lyon": [1.0, 0.0], "Nice": [0.8, 0.6], "Paris": [0.0, 1.0]}

    async def embed(texts: Any) -> list[list[float]]:
        return [places[text] for text in texts]

    place.embed = embed
    place.replicas.scripts = {"A": Script(("Lyon",)), "B": Script(("Nice",))}
    report = report_of(await hold(place, strategy="consensus"))
    assert (report.winner, report.stop_reason) == ("B", "nearest")


async def test_consensus_without_an_embedder_says_so(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",))}
    report = report_of(await hold(place, strategy="consensus"))
    assert (report.winner, report.stop_reason) == ("B", "embedder_failed_majority")


async def test_a_merged_answer_streams_while_it_is_written(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "writer": Script(("Par", "is", "!"))}
    told = await hold(place, strategy="synthesize")
    assert content(told) == ["Par", "is", "!"], "once, as it came"
    assert (report_of(told).winner, report_of(told).stop_reason, end_of(told).winner) == (None, "synthesized", "small")


async def test_a_writer_that_fails_before_its_first_token_leaves_the_best_draft(place: Stand) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), "writer": Script(errors=[BadRequest("too long")])}
    told = await hold(place, strategy="synthesize")
    assert (content(told), report_of(told).stop_reason) == (["Paris"], "writer_failed_majority")


@pytest.mark.parametrize(("strategy", "who"), [("judge", "judge"), ("synthesize", "writer")])
async def test_who_decides_and_says_nothing_does_not_waste_the_answers(place: Stand, strategy: str, who: str) -> None:
    place.replicas.scripts = {"A": Script(("Lyon",)), who: Script((), hangs=True)}
    told = await hold(place, strategy=strategy, timeout_s=20)
    assert (content(told), report_of(told).stop_reason) == (["Paris"], f"{who}_failed_majority")
    assert place.replicas.open == 0, "its replica still works for nobody"


async def test_a_fault_is_retried_by_dagster_and_seen_in_its_ui(place: Stand) -> None:
    place.replicas.scripts = {
        "A": Script(("Lyon",), errors=[UpstreamFailed("replica died")]),
        "C": Script(("Rome",)),
        "judge": Script(("Paris",), errors=[UpstreamFailed("replica died")]),
    }
    async with place.working() as pulls:
        run = await place.submit()
        told = bodies(await place.events(run))
        await place.until_quiet(pulls)
    assert report_of(told).stop_reason == "verdict"
    judged = [call for call in place.replicas.calls if call.startswith("judge")]
    assert len(judged) == 3, "only the reading that failed is asked again"
    dagster_run = await place.dagster_run(run)
    retried = await asyncio.to_thread(place.instance.all_logs, dagster_run.run_id, DagsterEventType.STEP_UP_FOR_RETRY)
    assert [log.step_key for log in retried] == ["argue[A]", "decide"]


@pytest.mark.parametrize("changed_live", [False, True])
async def test_the_settings_say_how_long_a_retry_waits(settings: Settings, instance: DagsterInstance, changed_live: bool) -> None:
    slow = settings.model_copy(update={"task_retries": 2, "retry_backoff_s": 0.4, "retry_backoff_max_s": 0.8})
    chosen = slow.model_copy(update={"retry_backoff_s": 0.01, "retry_backoff_max_s": 0.015})
    faults: list[Exception] = [UpstreamFailed("replica died"), UpstreamFailed("replica died")]
    stand = Stand(slow if changed_live else chosen, instance, ScriptedReplicas(A=Script(errors=faults)))
    async with stand.working() as pulls:
        if changed_live:
            pulls.reconfigure(chosen)
        run = await stand.submit(strategy="vote")
        await stand.events(run)
        await stand.until_quiet(pulls)
    dagster_run = await stand.dagster_run(run)
    retried = await asyncio.to_thread(instance.all_logs, dagster_run.run_id, DagsterEventType.STEP_UP_FOR_RETRY)
    waits = [log.dagster_event.step_retry_data.seconds_to_wait or 0 for log in retried if log.dagster_event is not None]
    assert [0.005 <= waits[0] <= 0.01, 0.0075 <= waits[1] <= 0.015] == [True, True], waits


@pytest.mark.parametrize(("drafts", "strategy"), [(True, "vote"), (False, "vote"), (False, "synthesize")])
async def test_the_first_token_that_is_heard_is_timed_once(
    place: Stand, monkeypatch: pytest.MonkeyPatch, drafts: bool, strategy: str
) -> None:
    timed: list[str] = []
    monkeypatch.setattr("dagster_project.resources.observe", lambda name, seconds, **tags: timed.append(f"{name} {tags}"))
    place.replicas.scripts = {"A": Script(("Lyon",))}
    told = await hold(place, drafts=drafts, strategy=strategy)
    assert end_of(told).reason == "stop"
    assert timed == ["aifactory_time_to_first_token_seconds {'route': 'workflow'}"]


async def test_an_operators_pool_limit_bounds_the_debaters(place: Stand) -> None:
    pools = place.instance.event_log_storage
    await asyncio.to_thread(pools.get_pool_limits)  # as the run of a moment ago did
    await asyncio.to_thread(pools.set_concurrency_slots, POOL, 1)
    assert [limit.name for limit in await asyncio.to_thread(pools.get_pool_limits)] == [POOL]
    try:
        told = await hold(place, labels="AB", strategy="vote")
    finally:
        await asyncio.to_thread(pools.delete_concurrency_limit, POOL)
    assert end_of(told).reason == "stop"
    assert place.replicas.most_open == 1
