"""The protocol of a debate: who is asked what, and who wins."""

from typing import Any

import pytest
from pydantic import ValidationError

from dagster_project.debate import (
    DebateSpec,
    Draft,
    answer,
    candidates,
    decide,
    judge_body,
    question_text,
    read_vote,
    short_answer,
    task_body,
    total_usage,
)
from serve_app.events import Usage

RESOLVED: dict[str, Any] = {
    "tasks": [
        {"task": "A", "model": "small", "adapter": None, "system": "Be brief.", "temperature": 0.0},
        {"task": "B", "model": "small", "adapter": "poet", "system": None, "temperature": None},
        {"task": "C", "model": "large", "adapter": None, "system": None, "temperature": 0.7},
    ],
    "rounds": 1,
    "strategy": "judge",
    "judge_model": "large",
    "judge_adapter": None,
    "drafts": True,
}
SPEC = DebateSpec.model_validate(RESOLVED)


def draft(task: str, text: str, **rest: Any) -> Draft:
    return Draft(task=task, model=SPEC.find(task).model_id, text=text, **rest)


ALL = [draft("A", "Paris."), draft("B", "It is Lyon"), draft("C", "A long walk along the river Seine, " * 10)]


def test_the_gateways_specification_is_read_as_it_comes() -> None:
    assert [t.model_id for t in SPEC.tasks] == ["small", "small:poet", "large"]
    assert DebateSpec.model_validate({**RESOLVED, "of_a_later_version": 1}) == SPEC


@pytest.mark.parametrize("wrong", [{"strategy": "vote"}, {"rounds": 2}, {"tasks": []}])
def test_what_is_not_built_yet_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DebateSpec.model_validate({**RESOLVED, **wrong})


def test_a_debater_gets_the_conversation_without_names_and_its_own_temperature() -> None:
    messages = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Capital?", "name": "bob"}]
    params = {"temperature": 1.5, "max_tokens": 9, "n": 3, "tools": [], "seed": 4}
    body = task_body(SPEC.find("A"), messages, params)
    assert body == {
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 4,
        "messages": [{"role": "system", "content": "Speak French.\n\nBe brief."}, {"role": "user", "content": "Capital?"}],
    }
    assert messages[1]["name"] == "bob", "the question itself must stay as it was"
    assert task_body(SPEC.find("B"), messages[1:], params)["temperature"] == 1.5


def test_the_judge_may_only_name_a_candidate_and_reads_them_in_the_given_order() -> None:
    body = judge_body("Capital?", [ALL[1], ALL[0]])
    asked = body["messages"][-1]["content"]
    assert body["structured_outputs"] == {"choice": ["B", "A"]}
    assert body["temperature"] == 0
    assert asked.index("Answer B") < asked.index("Answer A")


def test_a_long_answer_does_not_burst_the_judges_context() -> None:
    body = judge_body("q" * 100_000, [draft("A", "x" * 100_000), draft("B", "y" * 100_000)])
    assert len(body["messages"][-1]["content"]) < 8000


def test_the_question_of_a_conversation_says_who_said_what() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": "Why"}]},
    ]
    assert question_text(turns) == "user: Hi\nassistant: Yes?\nuser: Why"
    assert question_text([{"role": "system", "content": "s"}, turns[0]]) == "Hi"


def test_both_orders_agree_so_the_verdict_stands() -> None:
    verdict = decide(ALL, ["C", "C"])
    assert (verdict.winner, verdict.stop_reason) == ("C", "verdict")


def test_a_judge_that_follows_the_order_is_a_tie_and_the_majority_decides() -> None:
    drafts = [draft("A", "Lyon"), draft("B", "The answer is Paris."), draft("C", "paris")]
    verdict = decide(drafts, ["A", "C"])
    assert (verdict.winner, verdict.stop_reason) == ("B", "tie_majority")


def test_a_tie_without_a_majority_goes_to_the_first_task() -> None:
    assert decide(ALL, ["A", "C"]).stop_reason == "tie_first"
    assert decide(ALL, ["A", "C"]).winner == "A"
    even = [draft("A", "Lyon"), draft("B", "Paris")]
    assert decide(even, ["B", "A"]).winner == "A"


@pytest.mark.parametrize("votes", [[None, None], ["B", None], [None, "B"]])
def test_a_judge_that_failed_in_one_order_decides_nothing(votes: list[str | None]) -> None:
    verdict = decide(ALL, votes)
    assert (verdict.winner, verdict.stop_reason) == ("A", "judge_failed_first")


def test_failed_and_empty_drafts_are_no_candidates() -> None:
    drafts = [ALL[2], draft("A", " \n"), draft("B", "half", error={"message": "gone", "code": "upstream_failed"})]
    standing = candidates(SPEC, drafts)
    assert [d.task for d in standing] == ["C"]
    assert decide(standing, []).stop_reason == "sole_candidate"
    with pytest.raises(ValueError, match="no winner"):
        decide([], [])


def test_candidates_stand_in_the_order_of_the_specification() -> None:
    assert [d.task for d in candidates(SPEC, ALL[::-1])] == ["A", "B", "C"]


VOTES = [("B", "B"), (" B.\n", "B"), ("(A)", "A"), ("Both are fine", None), ("D", None), ("", None)]
SHORT = [
    ("Paris.", "paris"),
    ("The answer is: **Paris**!", "paris"),
    ("3.5 m", "3.5 m"),
    ("-4", "-4"),
    ("", None),
    ("word " * 40, None),
]


@pytest.mark.parametrize(("reply", "vote"), VOTES)
def test_a_vote_is_a_label_or_nothing(reply: str, vote: str | None) -> None:
    assert read_vote(reply, ["A", "B"]) == vote


@pytest.mark.parametrize(("text", "canonical"), SHORT)
def test_short_answers_compare_by_what_they_say(text: str, canonical: str | None) -> None:
    assert short_answer(text) == canonical


def test_the_answer_is_the_winners_text_and_costs_what_all_calls_cost() -> None:
    used = [Usage(prompt_tokens=5, completion_tokens=i, total_tokens=5 + i) for i in (1, 2, 3, 1, 1)]
    drafts = [d.model_copy(update={"usage": used[i]}) for i, d in enumerate(ALL)]
    made = answer("debate", SPEC, drafts, decide(drafts, ["B", "B"]), total_usage(used))
    assert made.text == "It is Lyon"
    assert made.winner == "small:poet"
    assert made.usage.total_tokens == 33
    assert made.debate is not None
    assert (made.debate.winner, made.debate.stop_reason) == ("B", "verdict")
    assert [t.usage.completion_tokens for t in made.debate.tasks] == [1, 2, 3]


def test_a_cut_winner_is_told_as_cut() -> None:
    made = answer("debate", SPEC, [draft("A", "half an", finish_reason="length")], decide([ALL[0]], []), Usage())
    assert made.ends[0].finish_reason == "length"
