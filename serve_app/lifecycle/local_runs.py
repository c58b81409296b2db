"""Runs that this gateway started, who reads them, and how they are stopped.

A run belongs to the system. It is stopped when its last reader leaves, unless the caller gave it a key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.errors import Overloaded
from serve_app.runs import Run

Stop = Callable[[str], None]


@dataclass(slots=True)
class _Entry:
    run: Run
    stop: Stop
    recorded: bool
    readers: int = 0


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

    @contextmanager
    def reading(self, trace_id: str) -> Iterator[None]:
        """Count as a reader of the run; the last one to leave an unkeyed run stops it."""
        entry = self._entries.get(trace_id)
        if entry is None:
            yield
            return
        entry.readers += 1
        try:
            yield
        finally:
            entry.readers -= 1
            if entry.readers == 0 and self._entries.get(trace_id) is entry:
                self._abandoned(entry)

    def _abandoned(self, entry: _Entry) -> None:
        if not entry.run.keyed:
            self.stop(entry.run.trace_id, "the client left")
        elif entry.run.route == "workflow":
            # It goes on at its worker, and ends there; nothing here would tell us.
            self.remove(entry.run.trace_id)

    def leased(self) -> list[str]:
        """Names of the recorded runs that this process itself executes and so must keep alive in the log."""
        return [t for t, e in self._entries.items() if e.recorded and e.run.route != "workflow"]

    def __contains__(self, trace_id: str) -> bool:
        return trace_id in self._entries
