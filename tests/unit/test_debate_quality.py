"""bench/debate_quality: the labelled questions, the statistics, equal tokens, the file of replies and the table."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from bench.debate_quality.arithmetic import generate
from bench.debate_quality.budget import MOST_SAMPLES, paid_samples, samples_to_draw
from bench.debate_quality.figures import bootstrap, compare, mcnemar, wilson
from bench.debate_quality.matching import canonical, is_right, words
from bench.debate_quality.questions import KINDS, Question, choose, digest, load
from bench.debate_quality.replies import Debated, Replies, Reply
from bench.debate_quality.report import as_text, contests, gather, rows

QUESTIONS = load()
NUMBER = Question(id="n", kind="one_step", answer_type="number", question="What is 17 + 25?", answers=("42",))
CAPITAL = Question(id="t", kind="fact", answer_type="text", question="What is the capital of France?", answers=("Paris",))
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def worked_out(node: ast.expr) -> Fraction:
    """The value of an expression, in exact fractions."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](worked_out(node.left), worked_out(node.right))
    assert isinstance(node, ast.Constant)
    return Fraction(node.value)  # type: ignore[arg-type]  # a number, or Fraction refuses it


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+", text))


# The questions


def test_ids_and_questions_are_unique_and_each_kind_is_there_in_number() -> None:
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS) == 120
    assert len({question.question for question in QUESTIONS}) == len(QUESTIONS)
    assert Counter(question.kind for question in QUESTIONS) == {"one_step": 30, "two_steps": 30, "fact": 60}


def test_the_arithmetic_is_what_the_seeded_script_makes() -> None:
    assert [question for question in QUESTIONS if question.kind != "fact"] == generate()
    assert generate(seed=1) != generate(seed=2)


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q.kind != "fact"], ids=lambda q: q.id)
def test_arithmetic_worked_out_again_gives_the_label(question: Question) -> None:
    assert question.expression is not None
    assert worked_out(ast.parse(question.expression, mode="eval").body) == Fraction(question.answers[0])
    assert Fraction(question.answers[0]) > 0
    assert numbers(question.expression) == numbers(question.question), "the question gives these numbers and no others"
    steps = sum(isinstance(node, ast.BinOp) for node in ast.walk(ast.parse(question.expression)))
    assert steps == {"one_step": 1, "two_steps": 2}[question.kind]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)
def test_every_accepted_spelling_is_right_and_the_question_does_not_hold_it(question: Question) -> None:
    for answer in question.answers:
        said = [answer, f"{answer}.", f"**{answer}**", f"Answer: {answer}", f"The answer is {answer}.", f"It is {answer}."]
        assert [text for text in said if not is_right(canonical(text, question), question)] == []
        assert not set(words(answer)) & set(words(question.question)), "words of the question do not count as an answer"
    assert not is_right(canonical(question.question, question), question), "an echo is no answer"
    assert not is_right(canonical("", question), question)


def test_a_subset_is_seeded_balanced_and_grows() -> None:
    few, more = choose(QUESTIONS, 12, seed=3), choose(QUESTIONS, 30, seed=3)
    assert more[:12] == few
    assert few == choose(QUESTIONS, 12, seed=3) != choose(QUESTIONS, 12, seed=4)
    assert Counter(question.kind for question in few) == dict.fromkeys(KINDS, 4)
    assert sorted(q.id for q in choose(QUESTIONS, 500, seed=3)) == sorted(q.id for q in QUESTIONS)
    assert digest(few) != digest(more)


# Statistics


def test_wilson_gives_the_known_values() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(right, of)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20).high == 1
    with pytest.raises(ValueError, match="no share"):
        wilson(0, 0)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(86, 150) == pytest.approx(3.716e-5, rel=1e-3)  # Agresti's approval ratings, as R's exact2x2 prints it


def test_bootstrap_keeps_pairs_and_is_seeded() -> None:
    same = [True, False] * 20
    assert bootstrap(same, same, seed=1) == bootstrap(same, same, seed=2)
    assert bootstrap(same, same, seed=1).low == bootstrap(same, same, seed=1).high == 0
    first = [True] * 60 + [False] * 40
    second = [False] * 20 + [True] * 40 + [False] * 40
    interval = bootstrap(first, second, seed=1)
    # Normal approximation of the paired difference: 0.2 +- 1.96 * sqrt(0.2 * 0.8 / 100).
    assert (interval.low, interval.high) == pytest.approx((0.1216, 0.2784), abs=0.015)
    assert interval == bootstrap(first, second, seed=1)


def test_compare_counts_who_alone_was_right() -> None:
    result = compare([True, True, False, True], [True, False, True, False], seed=1)
    assert (result.only_first, result.only_second, result.difference, result.p_value) == (2, 1, 0.25, 1)
    with pytest.raises(ValueError, match="no pairs"):
        compare([True], [], seed=1)


# Equal tokens


@pytest.mark.parametrize(
    ("tokens", "budget", "count"),
    [
        ([10, 10, 10, 10], 30, 3),
        ([10, 10, 10, 10], 34, 3),
        ([10, 10, 10, 10], 35, 3),  # a tie: fewer
        ([10, 10, 10, 10], 36, 4),
        ([50, 10], 20, 1),  # at least one
        ([10], 0, 1),
        ([5, 40, 5], 20, 1),
        ([10, 10], 30, None),  # more must be drawn to tell
        ([], 10, None),
        ([0] * MOST_SAMPLES, 10, MOST_SAMPLES),
    ],
)
def test_a_budget_pays_for_the_samples_that_come_nearest(tokens: list[int], budget: int, count: int | None) -> None:
    assert paid_samples(tokens, budget) == count


def test_samples_are_drawn_until_the_budget_is_reached_and_then_no_more() -> None:
    assert samples_to_draw([], 100, longest=32) == 4
    assert samples_to_draw([20, 20], 100, longest=32) == 3
    assert samples_to_draw([50, 50], 100, longest=32) == 0
    assert samples_to_draw([], 0, longest=32) == 1, "there is always one to compare with"
    assert samples_to_draw([0] * MOST_SAMPLES, 100, longest=32) == 0
    for each in (1, 7, 32):
        drawn: list[int] = []
        while count := samples_to_draw(drawn, 150, longest=32):
            drawn += [each] * count
        assert paid_samples(drawn, 150) is not None
        assert sum(drawn) < 150 + 8 * each or len(drawn) == MOST_SAMPLES


# The file of replies, and the table


def conditions() -> dict[str, object]:
    return {"model": "m", "seed": 1}


def test_an_interrupted_file_goes_on_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.jsonl"
    good, failed = Reply(question="q", arm="single", text="4\u20282", tokens=3), Reply(question="q", arm="judge/1", error="gone")
    with Replies(path, conditions()) as replies:
        replies.add(good)
        replies.add(failed)
    with path.open("a") as file:
        file.write('{"question": "q", "arm": "sa')
    with Replies(path, conditions()) as replies:
        assert replies.get("q", "single") == good
        assert replies.get("q", "judge/1") is None, "what failed is asked again"
        replies.add(Reply(question="q", arm="sample", tokens=1))
        replies.add(Reply(question="q", arm="sample", index=2, tokens=1))
    with Replies(path, conditions()) as replies:
        assert [reply.index for reply in replies.samples("q")] == [0], "up to the first that is missing"
    with pytest.raises(SystemExit, match="other conditions"):
        Replies(path, {**conditions(), "seed": 2})


def test_the_table_compares_at_the_tokens_of_each_debate(tmp_path: Path) -> None:
    asked = [NUMBER, CAPITAL]
    judge, vote = Debated(strategy="judge", rounds=1), Debated(strategy="vote", rounds=2)
    with Replies(tmp_path / "replies.jsonl", conditions()) as replies:
        for question, said in ((NUMBER, ["41", "42", "42", "42"]), (CAPITAL, ["Lyon", "Lyon", "Paris", "Paris"])):
            replies.add(Reply(question=question.id, arm="single", text=said[0], tokens=5, seconds=1))
            replies.add(Reply(question=question.id, arm="judge/1", text=question.answers[0], tokens=30, seconds=2))
            for index, text in enumerate(said):
                replies.add(Reply(question=question.id, arm="sample", index=index, text=text, tokens=10, seconds=1 + index))
        replies.add(Reply(question="n", arm="vote/2", text="41", tokens=12, seconds=4))
        arms = gather(asked, [judge, vote], replies)
    table = {row.method: row for row in rows(arms, asked)}
    assert list(table) == ["single", "judge/1", "self-consistency at judge/1", "vote/2", "self-consistency at vote/2"]
    assert (table["single"].right, table["judge/1"].right) == (0, 2)
    fair = table["self-consistency at judge/1"]
    assert (fair.right, fair.samples, fair.completion_tokens, fair.seconds) == (1, 3, 30, 3)
    assert fair.by_kind == {"one_step": 1, "fact": 0}
    cheap = table["self-consistency at vote/2"]
    assert (cheap.questions, cheap.missing, cheap.right, cheap.samples) == (1, 1, 0, 1)
    found = contests(arms, [judge, vote], seed=1)
    assert [(c.debate, c.against, c.result.questions, c.result.difference, c.tokens) for c in found] == [
        ("judge/1", "self-consistency at judge/1", 2, 0.5, (30, 30)),
        ("judge/1", "single", 2, 1.0, (30, 5)),
        ("vote/2", "self-consistency at vote/2", 1, 0.0, (12, 10)),
        ("vote/2", "single", 1, 0.0, (12, 5)),
    ]
    lines = as_text(list(table.values()), found).splitlines()
    assert len(lines) == 2 + 5 + 1 + 2 + 4
    assert len({line.count("|") for line in lines[:7]}) == 1
