"""The protocol of a debate: who is asked what, when the rounds end, and what is told of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from dagster_project.debate import (
    Ballot,
    DebateSpec,
    Draft,
    Verdict,
    after_round,
    allowance,
    answer,
    judge_verdict,
    question_text,
    report,
    standing,
    task_body,
    total_usage,
)
from serve_app.configured import DebateConfig
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
    "quorum": None,
    "straggler_s": 10.0,
    "token_budget": None,
    "closing_share": 0.25,
}
SPEC = DebateSpec.model_validate(RESOLVED)
ASKED = [{"role": "user", "content": "Capital?"}]


def spec(**fields: Any) -> DebateSpec:
    return DebateSpec.model_validate({**RESOLVED, **fields})


def draft(task: str, text: str, **rest: Any) -> Draft:
    return Draft(task=task, model=SPEC.find(task).model_id, text=text, **rest)


def used(completion: int) -> Usage:
    return Usage(prompt_tokens=5, completion_tokens=completion, total_tokens=5 + completion)


ALL = [draft("A", "Paris."), draft("B", "It is Lyon"), draft("C", "A long walk along the river Seine, " * 10)]
FAILED = draft("B", "half", finish_reason="error", error={"message": "gone", "code": "upstream_failed"})


def test_the_gateways_specification_is_read_as_it_comes() -> None:
    assert [t.model_id for t in SPEC.tasks] == ["small", "small:poet", "large"]
    assert DebateSpec.model_validate({**RESOLVED, "of_a_later_version": 1}) == SPEC


@pytest.mark.parametrize("wrong", [{"strategy": "duel"}, {"rounds": 4}, {"rounds": 0}, {"tasks": []}, {"quorum": 0}])
def test_what_no_debate_knows_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**wrong)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"quorum": 3}, "quorum"),
        ({"token_budget": 47}, "token_budget"),
        ({"rounds": 4}, "rounds"),
        ({"closing_share": 1}, "closing_share"),
        ({"straggler_s": -1}, "straggler_s"),
        ({"strategy": "duel"}, "strategy"),
    ],
)
def test_a_preset_that_cannot_be_held_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    preset = {"tasks": [{"task": "A"}, {"task": "B"}], "quorum": 2, "token_budget": 48}
    assert DebateConfig.model_validate(preset).quorum == 2
    with pytest.raises(ValidationError, match=named):
        DebateConfig.model_validate({**preset, **wrong})


@pytest.mark.parametrize(("quorum", "enough"), [(None, 3), (2, 2), (7, 3)])
def test_the_quorum_is_at_most_everybody(quorum: int | None, enough: int) -> None:
    assert spec(quorum=quorum).enough == enough


def test_a_debater_gets_the_conversation_without_names_and_its_own_temperature() -> None:
    messages = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Capital?", "name": "bob"}]
    params = {"temperature": 1.5, "max_tokens": 9, "n": 3, "tools": [], "seed": 4}
    body = task_body(SPEC, SPEC.find("A"), messages, params)
    assert body == {
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 4,
        "messages": [{"role": "system", "content": "Speak French.\n\nBe brief."}, {"role": "user", "content": "Capital?"}],
    }
    assert messages[1]["name"] == "bob", "the question itself must stay as it was"
    assert task_body(SPEC, SPEC.find("B"), messages[1:], params)["temperature"] == 1.5


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(("said", "merged"), [("Be kind.", "Be kind.\n\nBe brief."), ("", "Be brief.")])
def test_a_debaters_own_instructions_join_those_of_the_request(role: str, said: str, merged: str) -> None:
    body = task_body(SPEC, SPEC.find("A"), [{"role": role, "content": said}, *ASKED], {})
    assert body["messages"] == [{"role": role, "content": merged}, *ASKED], "templates refuse a second instructing message"


def test_the_name_of_a_function_is_no_speakers_name() -> None:
    called = {"role": "function", "name": "weather", "content": "rain"}
    assert task_body(SPEC, SPEC.find("B"), [called], {})["messages"] == [called]


def test_a_format_is_asked_of_every_debater() -> None:
    shape = {"type": "json_object"}
    assert task_body(SPEC, SPEC.find("B"), ASKED, {"response_format": shape})["response_format"] == shape


def test_the_second_round_shows_what_the_others_said_and_not_who() -> None:
    messages = task_body(SPEC, SPEC.find("B"), ASKED, {}, previous=ALL[::-1])["messages"]
    assert len(messages) == 1, "two messages of the user in a row break many chat templates"
    said = messages[0]["content"]
    assert said.startswith("Capital?\n\n")
    assert "> Paris." in said
    assert "Lyon" not in said, "a debater does not see its own answer among the others'"
    assert said.index("Paris") < said.index("river"), "in the order of the specification, not of arrival"
    assert all(name not in said for name in ("small", "poet", "large", "Answer A", "Answer C"))
    assert ASKED == [{"role": "user", "content": "Capital?"}]


def test_only_answers_that_stand_are_shown() -> None:
    cut = draft("A", "Par", finish_reason="cancelled")
    assert task_body(SPEC, SPEC.find("C"), ASKED, {}, previous=[cut, FAILED])["messages"] == ASKED


def test_after_an_assistants_turn_the_others_get_a_turn_of_their_own() -> None:
    turns = [*ASKED, {"role": "assistant", "content": "Hm."}]
    messages = task_body(SPEC, SPEC.find("B"), turns, {}, previous=ALL)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]


def test_long_answers_of_others_do_not_burst_a_small_context() -> None:
    long = [draft(task, "x" * 100_000) for task in "ABC"]
    assert len(task_body(SPEC, SPEC.find("A"), ASKED, {}, previous=long)["messages"][-1]["content"]) < 4000


@pytest.mark.parametrize(
    ("params", "bound", "sent"),
    [
        ({}, None, {}),
        ({"max_tokens": 9}, None, {"max_tokens": 9}),
        ({}, 50, {"max_tokens": 50}),
        ({"max_tokens": 9}, 50, {"max_tokens": 9}),
        ({"max_tokens": 90}, 50, {"max_tokens": 50}),
        ({"max_completion_tokens": 90}, 50, {"max_tokens": 50}),
        ({"max_completion_tokens": 9, "max_tokens": 70}, 50, {"max_tokens": 9}),
        ({"min_tokens": 60, "max_tokens": 90}, 50, {"max_tokens": 50, "min_tokens": 50}),
    ],
)
def test_the_smaller_of_the_two_bounds_holds(params: dict[str, Any], bound: int | None, sent: dict[str, Any]) -> None:
    assert task_body(SPEC, SPEC.find("B"), ASKED, params, max_tokens=bound) == {**sent, "messages": ASKED}


def test_the_question_of_a_conversation_says_who_said_what() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]},
        {"role": "tool", "content": "12:30"},
        {"role": "user", "content": [{"type": "text", "text": "Why"}]},
    ]
    assert question_text(turns) == "user: Hi\nassistant: [called clock with {}]\ntool: 12:30\nuser: Why"
    assert question_text([{"role": "system", "content": "s"}, turns[0]]) == "Hi"


def test_failed_empty_and_cut_drafts_are_no_candidates() -> None:
    drafts = [ALL[2], draft("A", " \n"), FAILED]
    assert [d.task for d in standing(SPEC, [drafts])] == ["C"]
    assert standing(SPEC, [[draft("A", "Par", finish_reason="cancelled")]]) == []
    assert [d.task for d in standing(SPEC, [ALL[::-1]])] == ["A", "B", "C"], "in the order of the specification"


def test_who_fails_in_a_later_round_stays_with_the_earlier_answer() -> None:
    second = [draft("A", "Lyon", round=2), FAILED.model_copy(update={"round": 2})]
    assert [(d.task, d.text, d.round) for d in standing(SPEC, [ALL[:2], second])] == [("A", "Lyon", 2), ("B", "It is Lyon", 1)]


@pytest.mark.parametrize(
    ("texts", "rounds_held", "again", "reason"),
    [
        ({"A": "Paris", "B": "paris.", "C": "The answer is Paris"}, 1, False, "agreement"),
        ({"A": "Paris", "B": "paris.", "C": ""}, 1, False, "agreement"),
        ({"A": "Paris", "B": "Lyon", "C": "Lyon"}, 1, True, None),
        ({"A": "Paris", "B": "Lyon", "C": "Lyon"}, 2, True, None),
        ({"A": "Paris", "B": "Lyon", "C": "Lyon"}, 3, False, "rounds"),
        ({"A": "Paris", "B": "Paris", "C": "Paris"}, 3, False, "agreement"),
        ({"A": "Paris", "B": "", "C": ""}, 1, False, "one_candidate"),
        ({"A": "", "B": "", "C": ""}, 1, False, "no_candidates"),
        ({"A": "word " * 40, "B": "word " * 40, "C": "word " * 40}, 1, True, None),
    ],
)
def test_when_the_rounds_end(texts: dict[str, str], rounds_held: int, again: bool, reason: str | None) -> None:
    drafts = [draft(task, text) for task, text in texts.items()]
    end = after_round(spec(rounds=3), [drafts] * rounds_held, spent=Usage())
    assert (end.again, end.reason) == (again, reason)


@pytest.mark.parametrize(
    ("fields", "spent", "calls", "closing", "each"),
    [
        ({}, 0, 3, False, None),
        ({"token_budget": 316}, 0, 3, False, 100),  # two ballots of 8 tokens are kept back
        ({"token_budget": 316}, 150, 3, False, 50),
        ({"token_budget": 316}, 300, 2, True, 8),
        ({"token_budget": 300, "strategy": "vote"}, 0, 3, False, 100),
        ({"token_budget": 300, "strategy": "consensus"}, 270, 3, False, 10),
        ({"token_budget": 400, "strategy": "synthesize"}, 0, 3, False, 100),  # the writer gets as much as a debater
        ({"token_budget": 400, "strategy": "synthesize"}, 240, 1, True, 160),
        ({"token_budget": 300}, 900, 3, False, 1),
    ],
)
def test_the_budget_is_shared(fields: dict[str, Any], spent: int, calls: int, closing: bool, each: int | None) -> None:
    assert allowance(spec(**fields), spent=used(spent), calls=calls, closing=closing) == each


@pytest.mark.parametrize(("spent", "again", "reason"), [(0, True, None), (252, True, None), (253, False, "budget")])
def test_no_round_is_begun_that_the_budget_does_not_carry(spent: int, again: bool, reason: str | None) -> None:
    end = after_round(spec(rounds=3, token_budget=316), [ALL], spent=used(spent))
    assert (end.again, end.reason) == (again, reason)


@pytest.mark.parametrize("strategy", ["judge", "vote", "consensus", "synthesize"])
@pytest.mark.parametrize("budget", [64, 100, 1001])
def test_debaters_that_use_all_they_may_stay_in_the_budget(strategy: str, budget: int) -> None:
    held = spec(rounds=3, strategy=strategy, token_budget=budget)
    spent = Usage()
    for rounds in range(1, 4):
        each = allowance(held, spent=spent, calls=3)
        assert each is not None
        assert each >= 16
        spent = total_usage([spent, *[used(each)] * 3])
        if not after_round(held, [ALL] * rounds, spent=spent).again:
            break
    closing = {"judge": 16, "synthesize": allowance(held, spent=spent, calls=1, closing=True)}.get(strategy) or 0
    assert spent.completion_tokens + closing <= budget


def test_the_answer_is_the_winners_text_and_costs_what_all_calls_cost() -> None:
    spent = [used(tokens) for tokens in (1, 2, 3, 1, 1)]
    drafts = [d.model_copy(update={"usage": spent[i]}) for i, d in enumerate(ALL)]
    ballots = [Ballot(voter="judge", order=order, choice="B") for order in (("A", "B", "C"), ("C", "B", "A"))]
    made = answer("debate", SPEC, [drafts], judge_verdict(drafts, ballots), total_usage(spent))
    assert made.text == "It is Lyon"
    assert made.winner == "small:poet"
    assert made.usage.total_tokens == 33
    assert made.debate is not None
    assert (made.debate.winner, made.debate.stop_reason, made.debate.rounds) == ("B", "verdict", 1)
    assert [t.usage.completion_tokens for t in made.debate.tasks] == [1, 2, 3]
    assert [(v.voter, v.order, v.choice) for v in made.debate.votes] == [(b.voter, b.order, b.choice) for b in ballots]


def test_a_tasks_usage_is_that_of_all_its_rounds() -> None:
    first = [draft("A", "Paris", usage=used(4)), draft("B", "Lyon", usage=used(2))]
    second = [draft("A", "Pa", round=2, usage=used(3), finish_reason="cancelled"), draft("B", "", round=2, usage=used(1))]
    told = report(spec(rounds=3), [first, second], Verdict(winner="A", stop_reason="tie_first"))
    assert [(t.task, t.usage.completion_tokens, t.finish_reason) for t in told.tasks] == [("A", 7, "stop"), ("B", 3, "stop")]
    assert told.rounds == 2
    assert (
        answer("debate", spec(rounds=3), [first, second], Verdict(winner="A", stop_reason="tie_first"), used(10)).text == "Paris"
    )


def test_a_round_that_nobody_was_asked_in_was_not_held() -> None:
    assert report(spec(rounds=3), [ALL, [], []], Verdict(winner="A", stop_reason="agreement")).rounds == 1


def test_a_merged_answer_is_the_writers() -> None:
    merged = Verdict(winner=None, stop_reason="synthesized", text="Both", model="large", finish_reason="length", usage=used(9))
    made = answer("debate", spec(strategy="synthesize"), [ALL], merged, used(20))
    assert (made.text, made.winner, made.ends[0].finish_reason) == ("Both", "large", "length")
    assert made.debate is not None
    assert made.debate.winner is None


def test_what_the_writer_thought_is_kept_with_what_it_wrote() -> None:
    merged = Verdict(winner=None, stop_reason="synthesized", text="Both", reasoning="Hm.")
    made = answer("debate", spec(strategy="synthesize"), [ALL], merged, used(20))
    assert made.messages == ({"role": "assistant", "content": "Both", "reasoning_content": "Hm."},)
    assert made.winner == "large"


def test_a_cut_winner_is_told_as_cut() -> None:
    drafts = [draft("A", "half an", finish_reason="length")]
    assert answer("debate", SPEC, [drafts], judge_verdict(drafts, []), Usage()).ends[0].finish_reason == "length"
