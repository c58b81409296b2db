"""What an outcome means for the log and for the cache; the same for every RunStore."""

from typing import Any

from serve_app.errors import Cancelled, Unavailable
from serve_app.runs import Answer, Outcome, Run, RunStatus, cacheable


def check_terminal(run: Run, outcome: Outcome) -> None:
    """Raise ValueError for an outcome that does not end a run."""
    if not outcome.status.terminal:
        raise ValueError(f"run {run.trace_id} cannot be settled as {outcome.status}: that is no end")


def answer_to_keep(run: Run, outcome: Outcome) -> Answer | None:
    """The answer that goes into the cache with this outcome, if any."""
    answer = outcome.answer
    if answer is None or outcome.status is not RunStatus.SUCCEEDED or not run.cache.writes or not cacheable(answer):
        return None
    return answer


def failed_retryably(outcome: Outcome) -> bool:
    """Whether the same key may run again after this failure: its error object says `"retryable": true`."""
    return outcome.status is RunStatus.FAILED and outcome.error is not None and outcome.error.get("retryable") is True


def abandoned_error() -> dict[str, Any]:
    """The error object of a run whose owner fell silent."""
    return Unavailable("the process that worked on this run is gone; ask again").record()


def cancelled_error(reason: str) -> dict[str, Any]:
    """The error object of a run that was asked to stop, and whose owner fell silent."""
    return Cancelled.because(reason).record()
