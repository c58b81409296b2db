"""What the lifecycle needs from the outside, as protocols. Adapters live in store, bus, replicas, embeddings."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.events import EventBody, RunEvent
from serve_app.runs import Answer, Outcome, Run, RunStatus


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A row of idempotency_log as a reader sees it. Times are Unix seconds."""

    trace_id: str
    req_id: str
    project: str
    key: str
    keyed: bool
    route: str
    model: str
    status: RunStatus
    attempt: int
    created_at: float
    updated_at: float
    lease_until: float
    answer: Answer | None = None
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    dagster_run_id: str | None = None
    told: bool = False  # its `finished` reached NATS, as far as we know
    cancel_reason: str | None = None  # why it was asked to stop, if it was
    traceparent: str | None = None  # of the caller that asked for it first


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of claiming a key: `claimed` says whether this run now owns it; `record` is the row as it stands."""

    claimed: bool
    record: RunRecord


@dataclass(frozen=True, slots=True)
class Leases:
    """What became of extended leases: the runs that are still `ours`, and of those the ones asked to stop, with the reason."""

    ours: frozenset[str] = frozenset()
    cancels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheHit:
    """A stored answer. `similarity` is 1.0 for an exact hit. Times are Unix seconds."""

    req_id: str
    trace_id: str
    answer: Answer
    similarity: float
    created_at: float
    question: str | None = None  # the text that was asked; only from `nearest`


class RunStore(Protocol):
    """The idempotency log. Every method raises errors.Unavailable when the database is away."""

    async def claim(self, run: Run, *, lease_s: float) -> Claim:
        """First durable write of a run: one statement.

        Claimed when the key is new; or its run ended before this request arrived and the key is not the caller's own
        (an identical unkeyed question asked again); or its run failed in a retryable way or was cancelled; or the row is
        `running` on a route that lives in a gateway (direct, rag) and its lease is over. A taken-over row counts
        `attempt` up.
        Otherwise the row stays as it is, with claimed=False. Raises errors.RateLimited when Run.key_id has too many under way.
        """
        ...

    async def extend_leases(self, trace_ids: Sequence[str], *, lease_s: float) -> Leases:
        """Let the leases of running runs end in `lease_s`, later or sooner than before.

        A run that is missing in `ours` has ended, or another run took its row.
        """
        ...

    async def request_cancel(self, trace_id: str, reason: str) -> None:
        """Ask a running run to stop; the first reason stays. Nothing happens when it has ended.

        Its owner hears of it when it extends the lease, also one that begins later.
        """
        ...

    async def end_abandoned(self, *, limit: int, workflow_overdue_s: float = 0) -> list[RunRecord]:
        """End running runs whose lease is over, at most `limit`; the longest abandoned first.

        One that was asked to stop ends as cancelled, any other as failed, retryably.

        A workflow run is ended once its lease has been over for `workflow_overdue_s`: the queue may bring it again.
        `attempt` goes up, so that a late owner finds nothing to settle. Of two callers at once each gets other runs.
        Each is noted as untold, until mark_told.
        """
        ...

    async def take_untold(self, *, older_than_s: float, limit: int) -> list[str]:
        """Trace_ids of runs ended by end_abandoned whose end nobody has set out to tell for that long, at most `limit`.

        They are the caller's to tell from now on, for as long. Of two callers at once each gets other runs.
        """
        ...

    async def settle(self, run: Run, outcome: Outcome) -> bool:
        """Record the outcome and, if it may be reused, the cache entry, in one transaction.

        False when the row was not ours any more (another attempt owns it, or it has ended): nothing is written.
        """
        ...

    async def mark_told(self, trace_id: str) -> None:
        """Note that the `finished` of an ended run reached NATS, so that nobody says it again."""
        ...

    async def purge(self, *, older_than_s: float, limit: int) -> None:
        """Forget runs that ended longer ago than that, and cached answers that have expired; at most `limit` of each."""
        ...

    async def find(self, trace_id: str, *, project: str | None = None) -> RunRecord | None:
        """The run of this name, only inside `project` when that is given."""
        ...

    async def note_dagster_run(self, trace_id: str, dagster_run_id: str) -> None:
        """Remember which Dagster run executes this run."""
        ...


class AnswerCache(Protocol):
    """Stored answers. Raises errors.Unavailable when the database is away."""

    async def exact(self, req_id: str) -> CacheHit | None:
        """A live entry for exactly this question."""
        ...

    async def nearest(self, scope: str, embedding: Sequence[float], *, threshold: float) -> Sequence[CacheHit]:
        """The 3 live entries in `scope` nearest to `embedding` with at least that cosine similarity, nearest first."""
        ...


class RunPublisher(Protocol):
    """Numbers and publishes the events of one run that lives in this process."""

    @property
    def trace_id(self) -> str: ...

    @property
    def finished(self) -> bool:
        """Whether the run's `finished` is out."""
        ...

    async def emit(self, body: EventBody) -> RunEvent:
        """Give the body the next seq and publish it: first to readers in this process, then to NATS.

        NATS being away is counted and logged, not raised. Order of calls is the order of seq. Raises ValueError once
        the run has finished, or was let go.
        """
        ...

    async def delivered(self) -> bool:
        """Whether NATS has every event up to now. Asks it, and so takes a round trip."""
        ...

    def let_go(self) -> None:
        """The run is not ours any more: publish nothing, and end readers in this process with errors.Unavailable."""
        ...


class EventBus(Protocol):
    """Events of runs, wherever they live."""

    async def ping(self) -> None:
        """Raises errors.Unavailable unless messages get through."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether another process can read from now on what is published here: false while NATS is away, and in mode core."""
        ...

    async def open_run(self, trace_id: str, *, resume: bool = False) -> RunPublisher:
        """Start publishing a run from this process. `resume` continues after the last seq that the stream holds."""
        ...

    def subscribe(self, trace_id: str, *, after: int = -1) -> AbstractAsyncContextManager[AsyncIterator[RunEvent]]:
        """Events with seq > `after`, in order, without holes, up to and including `finished`.

        The subscription stands once the context is entered. A run that lives in this process is read from memory.
        For another one, earlier events come from the stream (jetstream) or are not available (core: then only
        after=-1 before the run starts is safe). A reader that falls too far behind gets errors.Overloaded.
        """
        ...

    async def last_event(self, trace_id: str) -> RunEvent | None:
        """The newest event of the run that can be read, here or from the stream; None when nothing is held.

        Raises errors.Unavailable.
        """
        ...

    async def publish_cancel(self, trace_id: str, reason: str) -> None:
        """Ask whoever executes the run to stop it. Raises errors.Unavailable when NATS is away."""
        ...

    async def on_cancel(self, callback: Callable[[str, str], None]) -> None:
        """Call `callback(trace_id, reason)` for every cancel message from now on."""
        ...


class Audience(Protocol):
    """Whether anybody reads a run, on any gateway."""

    def attend(self, trace_id: str) -> AbstractAsyncContextManager[None]:
        """Be seen by other gateways as a reader of the run. Does nothing, and does not raise, while NATS is away."""
        ...

    async def others(self, trace_id: str) -> bool:
        """Whether another gateway has a reader, once this process has left. False while NATS is away."""
        ...


class RunQueue(Protocol):
    """Workflow runs waiting for a worker."""

    async def submit(self, run: Run) -> None:
        """Hand the run over; returns once the queue has it durably. Raises errors.Unavailable or errors.Overloaded."""
        ...

    async def pending(self) -> int:
        """Runs that no worker has taken yet."""
        ...

    async def backlog(self) -> int:
        """Runs that the queue may still bring: not taken yet, or taken and not ended. Raises errors.Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One id of /v1/models."""

    model_id: str
    parent: str | None = None  # the base model of an adapter
    max_model_len: int | None = None  # tokens
    any_adapter: bool = False  # its adapters cannot be listed: whether `model_id:name` exists only a replica knows


class Replicas(Protocol):
    """The language models."""

    def cards(self) -> list[ModelCard]:
        """Every model id that may be asked for, adapters included."""
        ...

    def stream(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[EventBody, None]:
        """Ask for a chat completion; `body` is an OpenAI chat request with `messages`.

        Yields role, token, tool_call and usage bodies as they come (usage repeatedly, each replacing the one
        before), and last one finished with the ends of all choices. Closing the iterator early aborts the request
        in the engine. Raises errors.NotFound (unknown model or adapter), BadRequest (the engine refused it),
        Overloaded, UpstreamFailed.
        """
        ...

    def completions(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Legacy completions, passed through: the chunks of a stream, or the one response. Same errors and abort."""
        ...

    async def answers(self, timeout_s: float) -> bool:
        """Whether at least one replica of every model answers a health check."""
        ...


class Embedder(Protocol):
    """Text to unit vectors."""

    @property
    def model_id(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    async def embed(self, texts: Sequence[str], *, unit: bool = True) -> list[list[float]]:
        """One vector per text, L2-normalised or (`unit` false) as the model gives them; a text over the limit is cut to it."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest text, in tokens."""
        ...

    async def embed_ids(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """The same for texts given as the model's own token ids. Raises errors.BadRequest for an unknown id."""
        ...

    def count_tokens(self, text: str) -> int: ...

    def has_unknown(self, text: str) -> bool:
        """Whether the text holds something that the tokenizer does not know."""
        ...
