"""What an op may reach of its run, and where a worker keeps the runs it executes."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from dagster import ResourceDefinition

from dagster_project.debate import DebateSpec, total_usage
from serve_app.errors import AifactoryError, Cancelled
from serve_app.events import EventBody, RunEvent, TokenEvent, Usage
from serve_app.lifecycle.settle import settle
from serve_app.ports import Replicas, RunPublisher, RunStore
from serve_app.runs import Outcome, Run, RunStatus
from serve_app.telemetry import observe


@dataclass
class DebateRun:
    """One run on this worker. Lives on the worker's loop, except where a method says thread-safe."""

    run: Run
    spec: DebateSpec
    publisher: RunPublisher
    replicas: Replicas
    store: RunStore
    task_retries: int = 2
    resumed: bool = False
    stopped_by: AifactoryError | None = None  # why somebody ended the run: a cancel, its deadline, a shutdown
    error: AifactoryError | None = None  # why the debate itself failed
    unrecorded: AifactoryError | None = None  # the database was away: the debate is held again
    owned_until: float = math.inf  # Unix seconds; after that the run may be another's
    confirm: Callable[[], Awaitable[None]] | None = None  # asks the log whether it is: then it is `lost`
    lost: bool = False
    _tasks_done: int = 0
    _spoke: bool = False
    _usage: dict[str, Usage] = field(default_factory=dict)
    _settling: "asyncio.Task[bool] | None" = None

    async def emit(self, body: EventBody) -> RunEvent:
        """Publish one event of the run. Raises ValueError when the run is lost."""
        if time.time() > self.owned_until and self.confirm is not None:
            await self.confirm()  # this worker stood still for longer than its lease
        if not self._spoke and isinstance(body, TokenEvent):
            self._spoke = True
            observe("aifactory_time_to_first_token_seconds", max(0.0, time.time() - self.run.started), route="workflow")
        return await self.publisher.emit(body)

    def task_done(self) -> int:
        """One more debater is through; how many that makes."""
        self._tasks_done += 1
        return self._tasks_done

    def spent(self, call: str, usage: Usage) -> None:
        """Note what one call to a replica has used so far."""
        self._usage[call] = usage

    @property
    def usage(self) -> Usage:
        """What the run has used so far, all calls together."""
        return total_usage(list(self._usage.values()))

    async def settle(self, outcome: Outcome, *, closing: Sequence[EventBody] = ()) -> bool:
        """Record the outcome and finish, once: whoever comes second gets the first one's result.

        A cancel does not tear a commit apart: it goes on behind. If the database was away, the next call tries again.
        Raises errors.Unavailable.
        """
        if self._settling is None or (self._settling.done() and _failed(self._settling)):
            work = settle(self.store, self.publisher, self.run, outcome, closing=closing)
            self._settling = asyncio.get_running_loop().create_task(work)
        return await asyncio.shield(self._settling)

    def without_answer(self) -> Outcome:
        """The outcome that says why there is no answer."""
        why = self.stopped_by or self.error or AifactoryError("the debate failed; the log has the cause under this trace_id")
        if isinstance(why, Cancelled):
            return Outcome(RunStatus.CANCELLED, "cancelled", self.usage, error=why.record())
        return failed(why, self.usage)

    def lose(self) -> None:
        """The run is not ours any more: no event of ours may come after those of its new owner."""
        self.lost = True
        self.publisher.let_go()

    @property
    def settling(self) -> bool:
        """Whether an outcome is recorded or is about to be."""
        return self._settling is not None and not (self._settling.done() and _failed(self._settling))

    async def close(self) -> None:
        """Wait for a commit that is still under way."""
        if self._settling is not None:
            await asyncio.wait([self._settling])


def failed(error: AifactoryError, usage: Usage) -> Outcome:
    """The outcome of a run without an answer."""
    return Outcome(RunStatus.FAILED, "error", usage, error=error.record())


def _failed(task: "asyncio.Task[bool]") -> bool:
    return task.cancelled() or task.exception() is not None


class Desk:
    """The runs on this worker, by Dagster run id. Thread-safe: ops ask from their own threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, DebateRun] = {}

    def put(self, run_id: str, debate: DebateRun) -> None:
        with self._lock:
            self._runs[run_id] = debate

    def remove(self, run_id: str) -> None:
        with self._lock:
            self._runs.pop(run_id, None)

    def find(self, run_id: str) -> DebateRun:
        """The run that a Dagster run executes. Raises LookupError for a run that this worker did not start."""
        with self._lock:
            found = self._runs.get(run_id)
        if found is None:
            raise LookupError(f"Dagster run {run_id} is not on this worker: ask for a debate through the API (x_route=workflow)")
        return found

    def as_resource(self) -> ResourceDefinition:
        """The desk as the resource `desk` of the job."""
        return ResourceDefinition.hardcoded_resource(self, description="the runs on this warm worker")
