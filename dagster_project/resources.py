"""What an op may reach of its run, and where a worker keeps the runs it executes."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from dagster import ResourceDefinition
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from dagster_project.debate import Ballot, DebateSpec, Draft, total_usage
from dagster_project.rounds import Decision, Held, Round, Speaking
from dagster_project.warm.step_outputs import OutputKey, RunOutputs
from serve_app.answers import cancelled, failed
from serve_app.errors import AifactoryError, Cancelled, Unavailable
from serve_app.events import EventBody, RunEvent, TokenEvent, Usage
from serve_app.lifecycle.retry import Backoff
from serve_app.lifecycle.settle import settle
from serve_app.ports import Replicas, RunPublisher, RunStore
from serve_app.runs import Outcome, Run
from serve_app.telemetry import logger, observe

Embed = Callable[[Sequence[str]], Awaitable[list[list[float]]]]  # texts to unit vectors
_KEEP_TRIES: Final = 4
_KEEP_PAUSE_S: Final = 0.2  # after the first of them; it doubles each time
_COMMIT_S: Final = 5.0  # kept for recording the answer, but no more than a quarter of what is left
# What the steps of a debate give: kept until the run has ended.
OUTPUTS: Final = (Draft, Held, Decision, Speaking)


@dataclass
class DebateRun:
    """One run on this worker. Lives on the worker's loop, except where a method says thread-safe."""

    run: Run
    spec: DebateSpec
    publisher: RunPublisher
    replicas: Replicas
    store: RunStore
    backoff: Backoff  # when a step asks a replica again
    embed: Embed | None = None  # for `consensus`
    resumed: bool = False
    take: int = 1  # 2, 3 … after workers died
    outputs: RunOutputs | None = None  # set before the first step
    dagster_run_id: str | None = None  # of this take; set with them
    stopped_by: AifactoryError | None = None  # why somebody ended the run: a cancel, its deadline, a shutdown
    error: AifactoryError | None = None  # why the debate itself failed
    unrecorded: AifactoryError | None = None  # the database was away: the debate is held again
    owned_until: float = math.inf  # Unix seconds; after that the run may be another's
    confirm: Callable[[], Awaitable[None]] | None = None  # asks the log whether it is: then it is `lost`
    lost: bool = False
    ballots: dict[str, Ballot] = field(default_factory=dict)  # by call: what the judge has said already
    _rounds: dict[int, Round] = field(default_factory=dict)
    _rounds_end: float = field(init=False)  # Unix seconds
    _spoke: bool = False
    _usage: dict[str, Usage] = field(default_factory=dict)
    _settling: "asyncio.Task[bool] | None" = None

    def __post_init__(self) -> None:
        self._rounds_end = time.time() + max(0.0, self.run.seconds_left) * (1 - self.spec.closing_share)

    async def emit(self, body: EventBody) -> RunEvent:
        """Publish one event of the run. Raises ValueError when the run is lost."""
        if time.time() > self.owned_until and self.confirm is not None:
            await self.confirm()  # this worker stood still for longer than its lease
        self._note_speech(body)
        return await self.publisher.emit(body)

    def _note_speech(self, body: EventBody) -> None:
        if not self._spoke and isinstance(body, TokenEvent):
            self._spoke = True
            observe("aifactory_time_to_first_token_seconds", max(0.0, time.time() - self.run.started), route="workflow")

    @property
    def kept(self) -> RunOutputs:
        """What the run's steps gave so far. Raises RuntimeError outside of an execution."""
        if self.outputs is None:
            raise RuntimeError(f"run {self.run.trace_id} is not being executed: nothing keeps its steps' outputs")
        return self.outputs

    async def keep(self, key: OutputKey, value: BaseModel) -> None:
        """Keep what a step gave, before anybody hears of it; waits out a short absence of Postgres.

        Raises what SQLAlchemy raises: then the debate is held again, and goes on from what was kept.
        """
        for attempt in range(_KEEP_TRIES):
            try:
                await asyncio.to_thread(self.kept.keep, key, value)
                return
            except SQLAlchemyError as error:
                logger.warning("a step's output was not kept", step=key.step, attempt=attempt + 1, error=str(error))
                if attempt == _KEEP_TRIES - 1:
                    self.unrecorded = Unavailable("Dagster's records are away: the debate is held again")
                    raise
            await asyncio.sleep(_KEEP_PAUSE_S * 2**attempt)

    def recall(self) -> None:
        """Take over what an earlier take kept, and what it used. Blocks; before the first step."""
        self.kept.recall()
        for key, value in self.kept.all().items():
            if isinstance(value, Draft):
                self.spent(f"kept {key.step}", value.usage)
            elif isinstance(value, Decision):
                self.spent(f"kept {key.step}", value.verdict.usage)

    def round(self, number: int, *, spent: Usage) -> Round:
        """The round of this number; the first to ask for it opens it. `spent`: what the rounds before took."""
        found = self._rounds.get(number)
        if found is None:
            found = self._rounds[number] = Round(self.spec, number, ends_at=self._rounds_end, spent=spent)
            for value in self.kept.all().values():
                if isinstance(value, Draft) and value.round == number:
                    found.over(value)
        return found

    @property
    def rounds_are_over(self) -> bool:
        """Whether what is left of the run's time is for judge and commit."""
        return time.time() >= self._rounds_end

    @property
    def closing_s(self) -> float:
        """Seconds that a judge or a writer may keep the answers waiting: after that one of them is given without it."""
        left = max(0.0, self.run.seconds_left)
        return left - min(_COMMIT_S, left / 4)

    def spent(self, call: str, usage: Usage) -> None:
        """Note what one call to a replica has used so far."""
        self._usage[call] = usage

    def used_by(self, calls: str) -> Usage:
        """What the calls whose name begins like this have used in this take."""
        return total_usage([usage for call, usage in self._usage.items() if call.startswith(calls)])

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
            self._settling = asyncio.get_running_loop().create_task(self._settle(outcome, closing))
        return await asyncio.shield(self._settling)

    async def _settle(self, outcome: Outcome, closing: Sequence[EventBody]) -> bool:
        ours = await settle(self.store, self.publisher, self.run, outcome, closing=closing, dagster_run_id=self.dagster_run_id)
        if ours:
            for body in closing:
                self._note_speech(body)  # without drafts the answer is the first that is heard
        return ours

    def without_answer(self) -> Outcome:
        """The outcome that says why there is no answer."""
        why = self.stopped_by or self.error or AifactoryError("the debate failed; the log has the cause under this trace_id")
        if isinstance(why, Cancelled):
            return cancelled(why, self.usage)
        return failed(why, self.usage)

    def lose(self) -> None:
        """The run is not ours any more: no event of ours may come after those of its new owner."""
        self.lost = True
        self.publisher.let_go()

    @property
    def settling(self) -> bool:
        """Whether an outcome is recorded or is about to be. Thread-safe."""
        return self._settling is not None and not (self._settling.done() and _failed(self._settling))

    async def close(self) -> None:
        """Wait for a commit that is still under way, and forget the outputs of a run that has ended."""
        if self._settling is None:
            return
        await asyncio.wait([self._settling])
        if self.outputs is None or self.lost or _failed(self._settling):
            return
        try:
            await asyncio.to_thread(self.outputs.discard)
        except SQLAlchemyError as error:  # they go with age
            logger.warning("outputs of an ended run were not discarded", trace_id=self.run.trace_id, error=str(error))


def _failed(task: "asyncio.Task[bool]") -> bool:
    return task.cancelled() or task.exception() is not None


class Desk:
    """The runs on this worker, by Dagster run id. Thread-safe: ops ask from their own threads."""

    def __init__(self, api_url: str = "") -> None:
        self._api_url = api_url.rstrip("/")
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

    def page(self, trace_id: str) -> str:
        """Where the API tells of a run: an address, or the path alone where the worker does not know the API's."""
        return f"{self._api_url or '/v1'}/runs/{trace_id}"

    def as_resource(self) -> ResourceDefinition:
        """The desk as the resource `desk` of the job."""
        return ResourceDefinition.hardcoded_resource(self, description="the runs on this warm worker")
