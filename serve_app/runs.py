"""A run and its fingerprint: what was asked, what it may become. Pure."""

import hashlib
import time
import uuid
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Literal

import orjson

from serve_app.events import ChoiceEnd, DebateReport, FinishReason, RagReport, RecallReport, Usage

Route = Literal["direct", "rag", "workflow"]
INSTRUCTING: Final = frozenset({"system", "developer"})  # roles whose messages say how to answer; two names of one thing
SCOPE_VERSION: Final = 2  # counts up whenever what a scope is made of changes: entries of before are then no candidates

# What does not change the answer is not part of the question, nor sent to the engine. (model and messages have fields of
# their own.) The last four are hints of OpenAI's that only its own service knows; SDKs send some of them per user.
_NOT_ASKED: Final = frozenset(
    {"stream", "stream_options", "user", "metadata", "store", "model", "messages", "request_id", "priority"}
    | {"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"}
)


class RunStatus(StrEnum):
    """Where a run stands. Every run ends in one of the last three."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self is not RunStatus.RUNNING


def new_trace_id() -> str:
    """32 hex digits, unique per run."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller asked, without how it wants the answer delivered.

    `params` holds every standard field of the body that can change the answer (sampling, tools, stop …).
    `debate` is the resolved debate specification on the workflow route. On route rag, `rag` says how evidence is looked
    for, and `corpus` is the version of what the project knows.
    """

    project: str
    route: Route
    model: str
    adapter: str | None
    messages: list[dict[str, Any]]
    params: dict[str, Any] = field(default_factory=dict)
    debate: dict[str, Any] | None = None
    rag: dict[str, Any] | None = None
    corpus: str | None = None

    @property
    def req_id(self) -> str:
        """sha256 of the canonical question, 64 hex digits."""
        return _digest({"messages": self.messages, **self._rest()})

    @property
    def asked_id(self) -> str:
        """The same without the corpus: what the caller has said. The same body gives the same one for ever."""
        return replace(self, corpus=None).req_id

    @property
    def model_id(self) -> str:
        """The model as the caller names it: `base` or `base:adapter`."""
        return f"{self.model}:{self.adapter}" if self.adapter else self.model

    @property
    def last_user_text(self) -> str | None:
        """The text of the closing user message, or None when the question does not end in plain user text."""
        if not self.messages or self.messages[-1].get("role") != "user":
            return None
        content = self.messages[-1].get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, list) and content and all(_is_text(part) for part in content):
            return "\n".join(part["text"] for part in content)
        return None

    @property
    def scope(self) -> str:
        """sha256 of all that must be equal for a semantic hit: everything but the last user text, 64 hex digits."""
        last = dict(self.messages[-1]) if self.messages else {}
        frame: list[Any] | None = None
        if self.last_user_text is not None:
            # The text goes, its frame stays: how many parts it had, and what else stood in them.
            content = last.pop("content")
            frame = None if isinstance(content, str) else [{k: v for k, v in p.items() if k != "text"} for p in content]
        version = {"scope": SCOPE_VERSION}
        return _digest({**version, "earlier": self.messages[:-1], "last": last, "frame": frame, **self._rest()})

    def _rest(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "route": self.route,
            "model": self.model,
            "adapter": self.adapter,
            "params": self.params,
            # `drafts` says only what a stream shows of it.
            "debate": self.debate and {k: v for k, v in self.debate.items() if k != "drafts"},
            **({"rag": self.rag, "corpus": self.corpus} if self.route == "rag" else {}),
        }


def answer_params(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request body that can change its answer; unset ones dropped."""
    return {k: v for k, v in body.items() if k not in _NOT_ASKED and not k.startswith("x_") and v is not None}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How a request wants the cache used. threshold is a cosine similarity; 0 is a value. ttl_s in seconds."""

    mode: Literal["use", "refresh", "bypass", "only", "provisional"] = "use"
    threshold: float = 0.92
    ttl_s: int = 86_400

    @property
    def reads(self) -> bool:
        return self.mode in ("use", "only", "provisional")

    @property
    def writes(self) -> bool:
        return self.mode in ("use", "refresh", "provisional")


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of one question. `key` is the caller's Idempotency-Key, else the req_id."""

    trace_id: str
    req_id: str
    key: str
    keyed: bool
    question: Question
    deadline: float  # Unix seconds
    cache: CachePolicy = CachePolicy()
    attempt: int = 1
    started: float = field(default_factory=time.time)  # Unix seconds
    embedding: list[float] | None = None  # of the last user text, when the question may be answered by meaning
    dagster_run_id: str | None = None  # the record that Dagster's UI made of it: executed instead of a new one
    key_id: str | None = None  # the API key that is charged; None where neither it nor its project has a limit
    traceparent: str | None = None  # of the caller, as spans.read_traceparent gives it: whose trace the spans join

    @property
    def project(self) -> str:
        return self.question.project

    @property
    def route(self) -> Route:
        return self.question.route

    @property
    def claim_id(self) -> str:
        """What a second request of this key must equal. A caller's own key goes on to mean its body when documents change."""
        return self.question.asked_id if self.keyed and self.question.corpus is not None else self.req_id

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, as it is stored and replayed.

    `messages` has one OpenAI message object per choice, `ends` says how each ended, `logprobs` has one entry per
    choice (None where not asked for).
    """

    model: str
    messages: tuple[dict[str, Any], ...]
    ends: tuple[ChoiceEnd, ...]
    usage: Usage
    winner: str | None = None
    debate: DebateReport | None = None
    cache: RecallReport | None = None  # set when the answer came from the cache
    logprobs: tuple[dict[str, Any] | None, ...] = ()
    extra: dict[str, Any] | None = None
    rag: RagReport | None = None

    @property
    def text(self) -> str:
        return str(self.messages[0].get("content") or "") if self.messages else ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: an answer, or an error, and what it cost."""

    status: RunStatus
    reason: FinishReason
    usage: Usage
    answer: Answer | None = None
    error: dict[str, Any] | None = None


def cacheable(answer: Answer) -> bool:
    """Cut answers and tool calls are never served to somebody else."""
    return all(end.finish_reason == "stop" for end in answer.ends) and not any(m.get("tool_calls") for m in answer.messages)
