"""From replies to the table: accuracy with its interval, tokens, time, and what differs at equal tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from bench.debate_quality.budget import paid_samples
from bench.debate_quality.figures import Difference, Interval, compare, wilson
from bench.debate_quality.matching import canonical, is_right, majority
from bench.debate_quality.questions import KINDS, Question
from bench.debate_quality.replies import SINGLE, Debated, Replies


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question by one method. `seconds`: as its user waits; samples are asked side by side, so the slowest counts."""

    right: bool
    tokens: int
    seconds: float
    samples: int | None = None


@dataclass(slots=True)
class Arm:
    """One method: its outcomes by question id, and how many questions it should have had."""

    name: str
    wanted: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. Tokens and seconds are means per question; an arm without an outcome has no row."""

    method: str
    questions: int
    missing: int
    right: int
    accuracy: float
    interval: Interval
    by_kind: dict[str, float]
    completion_tokens: float
    samples: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Contest:
    """A debate against another method, on the questions that both have answered."""

    debate: str
    against: str
    tokens: tuple[float, float]
    result: Difference


def gather(questions: Sequence[Question], debates: Sequence[Debated], replies: Replies) -> list[Arm]:
    """All arms: the single answer, then each debate followed by self-consistency at its tokens."""
    arms = [_asked(SINGLE, questions, replies)]
    for debated in debates:
        debate = _asked(debated.arm, questions, replies)
        arms += [debate, _self_consistency(debate, questions, replies)]
    return arms


def _asked(name: str, questions: Sequence[Question], replies: Replies) -> Arm:
    arm = Arm(name, len(questions))
    for question in questions:
        reply = replies.get(question.id, name)
        if reply is not None:
            right = is_right(canonical(reply.text, question), question)
            arm.outcomes[question.id] = Outcome(right, reply.tokens, reply.seconds)
    return arm


def _self_consistency(debate: Arm, questions: Sequence[Question], replies: Replies) -> Arm:
    """The majority of as many samples as this debate's tokens on the same question pay for."""
    arm = Arm(_against(debate.name), len(questions))
    for question in questions:
        samples = replies.samples(question.id)
        spent = debate.outcomes.get(question.id)
        count = None if spent is None else paid_samples([sample.tokens for sample in samples], spent.tokens)
        if count:
            paid = samples[:count]
            right = is_right(majority([canonical(sample.text, question) for sample in paid]), question)
            tokens = sum(sample.tokens for sample in paid)
            arm.outcomes[question.id] = Outcome(right, tokens, max(sample.seconds for sample in paid), count)
    return arm


def _against(debate: str) -> str:
    return f"self-consistency at {debate}"


def rows(arms: Sequence[Arm], questions: Sequence[Question]) -> list[Row]:
    """A row for each arm that has an outcome."""
    return [_row(arm, questions) for arm in arms if arm.outcomes]


def _row(arm: Arm, questions: Sequence[Question]) -> Row:
    outcomes = list(arm.outcomes.values())
    right = sum(outcome.right for outcome in outcomes)
    drawn = [outcome.samples for outcome in outcomes if outcome.samples is not None]
    by_kind: dict[str, float] = {}
    for kind in KINDS:
        marks = [arm.outcomes[q.id].right for q in questions if q.kind == kind and q.id in arm.outcomes]
        if marks:
            by_kind[kind] = mean(marks)
    return Row(
        method=arm.name,
        questions=len(outcomes),
        missing=arm.wanted - len(outcomes),
        right=right,
        accuracy=right / len(outcomes),
        interval=wilson(right, len(outcomes)),
        by_kind=by_kind,
        completion_tokens=mean(outcome.tokens for outcome in outcomes),
        samples=mean(drawn) if drawn else None,
        seconds=mean(outcome.seconds for outcome in outcomes),
    )


def contests(arms: Sequence[Arm], debates: Sequence[Debated], seed: int) -> list[Contest]:
    """Each debate against self-consistency at its tokens, and against the single answer."""
    by_name = {arm.name: arm for arm in arms}
    found = []
    for debated in debates:
        first = by_name[debated.arm]
        for second in (by_name[_against(debated.arm)], by_name[SINGLE]):
            both = [id for id in first.outcomes if id in second.outcomes]
            if both:
                a, b = [first.outcomes[id] for id in both], [second.outcomes[id] for id in both]
                result = compare([o.right for o in a], [o.right for o in b], seed)
                found.append(Contest(first.name, second.name, (mean(o.tokens for o in a), mean(o.tokens for o in b)), result))
    return found


def as_json(conditions: dict[str, Any], questions: Sequence[Question], table: Sequence[Row], found: Sequence[Contest]) -> Any:
    """Everything in the tables, for --json."""
    return {
        "conditions": conditions,
        "questions": [question.id for question in questions],
        "methods": [asdict(row) for row in table],
        "contests": [asdict(contest) for contest in found],
    }


def as_text(table: Sequence[Row], found: Sequence[Contest]) -> str:
    """Both tables in Markdown, so that they can be put into a page as they are."""
    lines = [
        f"| method | questions | right | accuracy | 95 % interval | {' | '.join(KINDS)} | tokens | samples | seconds |",
        "|---|---|---|---|---|" + "---|" * len(KINDS) + "---|---|---|",
    ]
    for row in table:
        kinds = " | ".join(f"{100 * row.by_kind[kind]:.0f} %" if kind in row.by_kind else "" for kind in KINDS)
        lines.append(
            f"| {row.method} | {row.questions}{f' ({row.missing} missing)' if row.missing else ''} | {row.right} |"
            f" {100 * row.accuracy:.1f} % | {100 * row.interval.low:.1f} to {100 * row.interval.high:.1f} % | {kinds} |"
            f" {row.completion_tokens:.1f} | {'' if row.samples is None else f'{row.samples:.1f}'} | {row.seconds:.1f} |"
        )
    if found:
        lines += [
            "",
            "| debate | against | questions | tokens | points | 95 % interval | only debate right | only other right | p |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
    for contest in found:
        won = contest.result
        lines.append(
            f"| {contest.debate} | {contest.against} | {won.questions} | {contest.tokens[0]:.1f}, {contest.tokens[1]:.1f} |"
            f" {100 * won.difference:+.1f} | {100 * won.interval.low:+.1f} to {100 * won.interval.high:+.1f} |"
            f" {won.only_first} | {won.only_second} | {won.p_value:.3f} |"
        )
    return "\n".join(lines)
