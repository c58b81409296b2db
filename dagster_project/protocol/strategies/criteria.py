"""What decides when a strategy cannot, or need not: agreement, the majority of the short answers, the first task. Pure."""

from collections.abc import Sequence
from typing import Final, Literal

from dagster_project.protocol.short_answers import short_answer
from dagster_project.protocol.terms import Ballot, Draft, StopReason, Verdict

Why = Literal["tie", "judge_failed", "embedder_failed", "writer_failed"]
_BY_MAJORITY: Final[dict[Why, StopReason]] = {
    "tie": "tie_majority",
    "judge_failed": "judge_failed_majority",
    "embedder_failed": "embedder_failed_majority",
    "writer_failed": "writer_failed_majority",
}
_BY_PLACE: Final[dict[Why, StopReason]] = {
    "tie": "tie_first",
    "judge_failed": "judge_failed_first",
    "embedder_failed": "embedder_failed_first",
    "writer_failed": "writer_failed_first",
}


def foregone(standing: Sequence[Draft]) -> Verdict | None:
    """The verdict that needs no strategy: one candidate, or all agree. None when there is something to decide.

    Raises ValueError when nobody stands.
    """
    if not standing:
        raise ValueError("a debate without a candidate has no winner")
    if len(standing) == 1:
        return Verdict(winner=standing[0].task, stop_reason="sole_candidate")
    if agree(standing):
        return Verdict(winner=standing[0].task, stop_reason="agreement")
    return None


def agree(standing: Sequence[Draft]) -> bool:
    """Whether two or more candidates all gave the same short answer. Long answers and cut ones never agree."""
    answers = {_short_answer(d) for d in standing}
    return len(standing) > 1 and len(answers) == 1 and None not in answers


def fall_back(standing: Sequence[Draft], why: Why, ballots: Sequence[Ballot] = ()) -> Verdict:
    """The next criterion after a tie or a failure: most candidates gave one short answer, else the first task."""
    agreed = majority(standing)
    if agreed is not None:
        return Verdict(winner=agreed, stop_reason=_BY_MAJORITY[why], ballots=tuple(ballots))
    return Verdict(winner=standing[0].task, stop_reason=_BY_PLACE[why], ballots=tuple(ballots))


def majority(standing: Sequence[Draft]) -> str | None:
    """The first task of the one largest group that gave the same short answer; None when no group is larger."""
    groups = list(by_answer(standing).values())
    most = max((len(tasks) for tasks in groups), default=0)
    largest = [tasks for tasks in groups if len(tasks) == most]
    return largest[0][0] if most > 1 and len(largest) == 1 else None


def by_answer(standing: Sequence[Draft]) -> dict[str, list[str]]:
    """Short answer → the tasks that gave it, both in the order of the candidates. Long and cut answers are left out."""
    groups: dict[str, list[str]] = {}
    for draft in standing:
        answer = _short_answer(draft)
        if answer is not None:
            groups.setdefault(answer, []).append(draft.task)
    return groups


def _short_answer(draft: Draft) -> str | None:
    # Of "The answer is 125." the limit of tokens may have left "The answer is 12".
    return None if draft.finish_reason == "length" else short_answer(draft.text)
