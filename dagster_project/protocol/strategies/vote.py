"""`vote`: the short answer that most debaters gave. Each debater has one ballot; a long answer abstains."""

from collections.abc import Sequence

from dagster_project.protocol.strategies.criteria import by_answer, foregone
from dagster_project.protocol.terms import Ballot, Draft, Verdict


def vote_verdict(standing: Sequence[Draft]) -> Verdict:
    """The winner by the candidates' own short answers. A ballot's choice is the first task that gave the same answer.

    Two answers with as many ballots each are a tie, which goes to the first task among them. Where nobody gave a short
    answer there is nothing to count: the first task, and the stop reason says so. Raises ValueError when nobody stands.
    """
    groups = by_answer(standing)
    chosen = {task: tasks[0] for tasks in groups.values() for task in tasks}
    ballots = tuple(Ballot(voter=d.task, choice=chosen.get(d.task)) for d in standing)
    settled = foregone(standing)
    if settled is not None:
        return settled.model_copy(update={"ballots": ballots})
    if not groups:
        return Verdict(winner=standing[0].task, stop_reason="not_comparable", ballots=ballots)
    most = max(len(tasks) for tasks in groups.values())
    largest = [tasks for tasks in groups.values() if len(tasks) == most]
    return Verdict(winner=largest[0][0], stop_reason="most_votes" if len(largest) == 1 else "tie_first", ballots=ballots)
