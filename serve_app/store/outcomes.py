"""What an outcome means for the log and for the cache; the same for every RunStore."""

from typing import Any, Final

from serve_app.errors import Cancelled, Unavailable
from serve_app.events import DebateReport
from serve_app.runs import Answer, Outcome, Run, RunStatus, cacheable

_SILENT: Final = ("error", "cancelled")  # how a debater ends that gave no answer
_FROM_CACHE: Final = ("exact", "semantic")


def check_terminal(run: Run, outcome: Outcome) -> None:
    """Raise ValueError for an outcome that does not end a run."""
    if not outcome.status.terminal:
        raise ValueError(f"run {run.trace_id} cannot be settled as {outcome.status}: that is no end")


def answer_to_keep(run: Run, outcome: Outcome) -> Answer | None:
    """The answer that goes into the cache with this outcome, if any."""
    answer = outcome.answer
    if answer is None or outcome.status is not RunStatus.SUCCEEDED or not run.cache.writes or not cacheable(answer):
        return None
    if answer.debate is not None and degraded(answer.debate):
        return None
    return answer


def degraded(debate: DebateReport) -> bool:
    """Whether a part that was away had a say in the debate: a later one may end better, so others must not get this one.

    A judge, writer or embedder failed, or a debater did, or one was cut before it had answered.
    """
    return "_failed_" in debate.stop_reason or any(task.finish_reason in _SILENT for task in debate.tasks)


def failed_retryably(outcome: Outcome) -> bool:
    """Whether the same key may run again after this failure: its error object says `"retryable": true`."""
    return outcome.status is RunStatus.FAILED and outcome.error is not None and outcome.error.get("retryable") is True


def tokens_to_charge(outcome: Outcome) -> int:
    """What a budget is charged for a run: what the models worked, also for an answer that was cut. The cache is free."""
    recalled = outcome.answer.cache if outcome.answer is not None else None
    return 0 if recalled is not None and recalled.result in _FROM_CACHE else outcome.usage.total_tokens


def abandoned_error() -> dict[str, Any]:
    """The error object of a run whose owner fell silent."""
    return Unavailable("the process that worked on this run is gone; ask again").record()


def cancelled_error(reason: str) -> dict[str, Any]:
    """The error object of a run that was asked to stop, and whose owner fell silent."""
    return Cancelled.because(reason).record()
