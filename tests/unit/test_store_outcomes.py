"""Which answers of debates others may get from the cache."""

import time
from typing import Any, get_args

import pytest

from dagster_project.protocol.terms import StopReason
from serve_app.answers import succeeded
from serve_app.events import ChoiceEnd, DebateReport, TaskReport, Usage
from serve_app.runs import Answer, Question, Run, new_trace_id
from serve_app.store.outcomes import answer_to_keep, degraded


def held(stop_reason: str = "verdict", *ends: str) -> DebateReport:
    tasks = (
        TaskReport(task=label, model="small", usage=Usage(), finish_reason=end) for label, end in zip("ABC", ends, strict=False)
    )
    return DebateReport(winner="A", strategy="judge", rounds=1, stop_reason=stop_reason, tasks=tuple(tasks))


def kept(debate: DebateReport | None) -> bool:
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Capital of France?"}]
    question = Question(project="p", route="workflow", model="debate", adapter=None, messages=asked, debate={})
    run = Run(new_trace_id(), question.req_id, question.req_id, False, question, deadline=time.time() + 60)
    said = {"role": "assistant", "content": "Paris"}
    answer = Answer("debate", (said,), (ChoiceEnd(finish_reason="stop"),), Usage(), debate=debate)
    return answer_to_keep(run, succeeded(answer)) is answer


@pytest.mark.parametrize("stop_reason", get_args(StopReason))
def test_the_answer_of_a_debate_whose_judge_writer_or_embedder_failed_is_not_kept(stop_reason: str) -> None:
    failed = stop_reason.startswith(("judge_failed", "writer_failed", "embedder_failed"))
    assert degraded(held(stop_reason)) is failed
    assert kept(held(stop_reason, "stop", "stop", "stop")) is not failed


@pytest.mark.parametrize(
    ("ends", "good"),
    [
        (("stop", "stop", "stop"), True),
        (("stop", "stop", "length"), True),
        (("stop", "stop", "error"), False),
        (("stop", "cancelled", "stop"), False),
    ],
)
def test_the_answer_of_a_debate_without_one_of_its_debaters_is_not_kept(ends: tuple[str, ...], good: bool) -> None:
    assert kept(held("verdict", *ends)) is good


def test_an_answer_without_a_debate_is_kept() -> None:
    assert kept(None)
