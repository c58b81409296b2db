"""What a run did and how long it took, as spans of OpenTelemetry; serve_app.tracing sends them, if anybody wants them.

Every id of a parent follows from the run's trace_id, so that another process needs to be told nothing:

    POST /v1/chat/completions               the exchange with the client
    ├── recall exact, recall semantic
    └── run direct | run rag | invoke_workflow debate        until its end is recorded
        ├── wait for worker, retrieval
        └── chat MODEL                      one for each call to a replica

The run's trace_id is OpenTelemetry's too. With a caller's traceparent the spans join the caller's trace, and the
attribute aifactory.trace_id names the run. Spans hold names, numbers and codes: no prompt, no answer, no error's text.
"""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from serve_app.errors import AifactoryError
from serve_app.runs import Outcome, Run, RunStatus

Fact = str | bool | int | float | list[str]
Kind = Literal["internal", "server", "client"]

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_TRACEPARENT_MAX: Final = 256
_RATIO_DIGITS: Final = 12  # of a trace_id: all random; what follows holds the version of the UUID
_NAMES: Final = {"direct": "run direct", "rag": "run rag", "workflow": "invoke_workflow debate"}
_CUT: Final = (asyncio.CancelledError, GeneratorExit)


def read_traceparent(headers: list[str]) -> str | None:
    """The caller's W3C traceparent as `00-TRACE-SPAN-FLAGS`, or None: there is none, more than one, or it is malformed."""
    if len(headers) != 1 or len(headers[0]) > _TRACEPARENT_MAX:
        return None
    found = _TRACEPARENT.fullmatch(headers[0])
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    # Of a later version only these four are known, and of its flags only `sampled`.
    return f"00-{trace_id}-{span_id}-{int(flags, 16) & 1:02x}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the spans of one run belong. Ids are hex digits: 32 of a trace, 16 of a span."""

    run: str
    trace_id: str
    caller: str | None  # the caller's span

    @classmethod
    def of(cls, trace_id: str, traceparent: str | None) -> "Place":
        if traceparent is None:
            return cls(trace_id, trace_id, None)
        _, theirs, caller, _ = traceparent.split("-")
        return cls(trace_id, theirs, caller)

    @property
    def exchange(self) -> str:
        """The span of the exchange with the client that made the run."""
        return self.run[16:]

    @property
    def execution(self) -> str:
        """The span of the run itself."""
        return hashlib.sha256(f"{self.run}/run".encode()).hexdigest()[:16]


class Notes:
    """Around a block of work, which may tell something of itself; here nobody listens."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """The block is over."""

    def note(self, facts: Mapping[str, Fact | None]) -> None:
        """Add attributes; None is left out."""

    def fail(self, error: BaseException) -> None:
        """The work ended with this; of the error only its code is told."""


_UNHEARD: Final = Notes()


@dataclass(slots=True)
class Span(Notes):
    """One span while it is measured. Times are Unix seconds; `error` is a code; `links` are of other traces."""

    name: str
    kind: Kind
    place: Place
    span_id: str
    parent: str | None
    start: float
    facts: dict[str, Fact] = field(default_factory=dict)
    error: str | None = None
    failed: bool = False  # an `error` alone is not: a client may leave, a round may end
    end: float | None = None
    moments: dict[str, float] = field(default_factory=dict)  # by name, Unix seconds
    links: list[Place] = field(default_factory=list)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """See Notes. An error goes on its way."""
        if error is not None:
            self.fail(error)
        emit(self)

    def note(self, facts: Mapping[str, Fact | None]) -> None:
        """See Notes."""
        self.facts.update({name: value for name, value in facts.items() if value is not None})

    def fail(self, error: BaseException) -> None:
        """See Notes."""
        self.failed = not isinstance(error, _CUT)
        self.error = error.code if isinstance(error, AifactoryError) else "cut" if not self.failed else type(error).__name__


class _Recording:
    """Who takes the spans of this process. Nobody: then none are made."""

    sink: Callable[[Span], None] | None = None
    ratio: float = 1.0


_recording: Final = _Recording()


def send_spans_to(sink: Callable[[Span], None], *, ratio: float) -> None:
    """From now on every span of this process goes to `sink`, which must not block; `ratio`: share of the runs traced."""
    _recording.sink, _recording.ratio = sink, ratio


def drop_spans(sink: Callable[[Span], None]) -> None:
    """`sink` takes no more. Does nothing when another has taken its place."""
    if _recording.sink == sink:
        _recording.sink = None


def traced(trace_id: str, traceparent: str | None) -> Place | None:
    """Where a run's spans belong; None when nobody wants them: the same in every process.

    A caller's own decision holds. Without one it is the ratio's, by digits of the trace_id.
    """
    if _recording.sink is None:
        return None
    if traceparent is not None:
        return Place.of(trace_id, traceparent) if traceparent.endswith("1") else None
    if int(trace_id[:_RATIO_DIGITS], 16) >= _recording.ratio * 16**_RATIO_DIGITS:
        return None
    return Place.of(trace_id, None)


def emit(span: Span) -> None:
    """Hand a span over; it ends now unless it has an end."""
    if _recording.sink is not None:
        span.end = span.end or time.time()
        _recording.sink(span)


def new_span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def timed(run: Run, name: str, *, of_exchange: bool = False) -> Notes:
    """A span of a run, to be used as a context. Costs next to nothing when nobody wants it.

    `of_exchange`: what is done before it is clear whether the run begins at all.
    """
    place = traced(run.trace_id, run.traceparent)
    if place is None:
        return _UNHEARD
    parent = place.exchange if of_exchange else place.execution
    return Span(name, "internal", place, new_span_id(), parent, time.time())


def waited(run: Run, *, again: bool) -> None:
    """A worker has taken the run: it waited from its claim until now. `again`: a worker had it before."""
    place = traced(run.trace_id, run.traceparent)
    if place is not None:
        facts: dict[str, Fact] = {"aifactory.taken_up_again": again}
        emit(Span("wait for worker", "internal", place, new_span_id(), place.execution, run.started, facts))


def ended(run: Run, outcome: Outcome, *, recorded: bool = True, dagster_run_id: str | None = None) -> None:
    """The run has its end: its own span, from the claim until now."""
    place = traced(run.trace_id, run.traceparent)
    if place is None:
        return
    # A debate that began on Dagster's page has no exchange.
    parent = place.exchange if run.dagster_run_id is None else place.caller
    span = Span(_NAMES[run.route], "internal", place, place.execution, parent, run.started)
    if run.route == "workflow":
        span.note({"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": run.question.model})
    span.note(
        {
            "aifactory.route": run.route,
            "aifactory.project": run.project,
            "aifactory.req_id": run.req_id,
            "aifactory.attempt": run.attempt,
            "aifactory.model": run.question.model_id,
            "aifactory.outcome": outcome.status.value,
            "aifactory.finish_reason": outcome.reason,
            "aifactory.recorded": recorded,
            "aifactory.dagster_run_id": dagster_run_id or run.dagster_run_id,
            # Not gen_ai.usage.*: who adds that up over a trace would count the calls twice.
            "aifactory.usage.input_tokens": outcome.usage.prompt_tokens,
            "aifactory.usage.output_tokens": outcome.usage.completion_tokens,
        }
    )
    if outcome.answer is not None and outcome.answer.cache is not None:
        span.note({"aifactory.cache.result": outcome.answer.cache.result})
    if outcome.answer is not None and outcome.answer.debate is not None:
        debate = outcome.answer.debate
        span.note({"aifactory.debate.strategy": debate.strategy, "aifactory.debate.rounds": debate.rounds})
        span.note({"aifactory.debate.stop_reason": debate.stop_reason, "aifactory.debate.winner": debate.winner})
    if outcome.status is not RunStatus.SUCCEEDED:
        span.failed, span.error = True, str((outcome.error or {}).get("code") or outcome.reason)
    emit(span)


def abandoned(trace_id: str, traceparent: str | None, route: str, *, since: float, code: str) -> None:
    """The run was ended by somebody else, because its owner fell silent. `since`: its claim, Unix seconds."""
    place = traced(trace_id, traceparent)
    if place is not None:
        facts: dict[str, Fact] = {"aifactory.route": route, "aifactory.outcome": "abandoned"}
        span = Span(_NAMES[route], "internal", place, place.execution, place.exchange, since, facts)
        span.failed, span.error = True, code
        emit(span)
