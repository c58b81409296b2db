"""Runs that execute in this gateway, and how each is stopped."""

from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import Overloaded
from serve_app.runs import Run

Stop = Callable[[str], None]


@dataclass(slots=True)
class _Entry:
    run: Run
    stop: Stop
    recorded: bool


class LocalRuns:
    """A bounded table of the runs in flight here. `stop` is called with a reason, at most once per run."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, run: Run, stop: Stop, *, recorded: bool = True) -> None:
        """Raises errors.Overloaded when the table is full."""
        if len(self._entries) >= self._limit:
            raise Overloaded(f"this gateway has {self._limit} runs in flight already; retry shortly", retry_after_s=1)
        self._entries[run.trace_id] = _Entry(run, stop, recorded)

    def remove(self, trace_id: str) -> None:
        """The run has ended; nobody can stop it any more."""
        self._entries.pop(trace_id, None)

    def stop(self, trace_id: str, reason: str) -> bool:
        """Stop the run if it is in flight here. False when it is not."""
        entry = self._entries.pop(trace_id, None)
        if entry is None:
            return False
        entry.stop(reason)
        return True

    def leased(self) -> list[str]:
        """Names of the recorded runs that this process itself executes and so must keep alive in the log."""
        return [trace_id for trace_id, entry in self._entries.items() if entry.recorded]
