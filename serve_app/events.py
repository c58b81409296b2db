"""What happens in a run, as events: one closed union, and its JSON form on `evt.chat.{trace_id}`.

A `RunEvent` is an envelope (schema version, trace_id, seq) around one body. Bodies are frozen and told apart by
`type`. The fields that the contract names are always there; the optional ones carry what an OpenAI chunk can
carry beyond them (several choices, logprobs, tool call ids), so that a stream of events loses nothing.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

SCHEMA_VERSION: Final = 1

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error", "cancelled"]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(_Body):
    """Token counts, as OpenAI names them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
        )


class TaskReport(_Body):
    """What one debater did."""

    task: str
    model: str
    usage: Usage = Usage()
    finish_reason: str | None = None


class BallotReport(_Body):
    """One vote in a debate: by the judge, which read the answers in `order`, or by a debater. `choice` None: no opinion."""

    voter: str
    order: tuple[str, ...] = ()
    choice: str | None = None


class DebateReport(_Body):
    """How a debate went: the `debate` object of `x_factory`. `winner` is a task, None where the answer was merged."""

    winner: str | None = None
    strategy: str
    rounds: int
    stop_reason: str
    votes: tuple[BallotReport, ...] = ()
    tasks: tuple[TaskReport, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The JSON object as clients see it: nobody won and nobody was chosen are said as null."""
        votes = [{"voter": v.voter, **({"order": list(v.order)} if v.order else {}), "choice": v.choice} for v in self.votes]
        return self.model_dump(exclude_none=True) | {"winner": self.winner, "votes": votes}


class RecallReport(_Body):
    """What the cache had to do with an answer: the `cache` object of `x_factory`."""

    result: Literal["miss", "exact", "semantic", "attached", "bypass"] = "miss"
    similarity: float | None = None
    provisional: bool = False


class SourceReport(_Body):
    """One passage that an answer may rest on: which document, its name, the number of the chunk in it, and how well it fits.

    `score` is the fused rank, `similarity` the cosine to the question.
    """

    document_id: str
    name: str
    position: int
    score: float
    similarity: float


class RagReport(_Body):
    """What the documents had to do with an answer: the `rag` object of `x_factory`. `note` says why none were used."""

    relevant: bool
    used: int = 0
    sources: tuple[SourceReport, ...] = ()
    note: str | None = None

    def facts(self, *, sources: bool) -> dict[str, Any]:
        """The JSON object as clients see it."""
        told = self.model_dump(mode="json", include={"relevant", "used", *(("sources",) if sources else ())})
        return told | ({"note": self.note} if self.note else {})


class ChoiceEnd(_Body):
    """How one choice of an answer ended. `token_ids`: all of it as the engine counts, where the request wants them."""

    index: int = 0
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: tuple[int, ...] | None = None


class RoleEvent(_Body):
    """A choice begins."""

    type: Literal["role"] = "role"
    role: str = "assistant"
    index: int = 0


class TokenEvent(_Body):
    """A piece of text. `reasoning`: the model's own thinking.

    `task` set: a debater's draft, of this `round`. A higher `attempt`: the task was asked anew, what it had said is void.
    """

    type: Literal["token"] = "token"
    text: str
    task: str | None = None
    round: int = 1
    attempt: int = 1
    index: int = 0
    reasoning: bool = False
    logprobs: dict[str, Any] | None = None


class ToolCallEvent(_Body):
    """A piece of a tool call: `call` numbers the call inside its choice; id and name come with its first piece."""

    type: Literal["tool_call"] = "tool_call"
    name: str | None = None
    arguments: str = ""
    call: int = 0
    call_id: str | None = None
    index: int = 0
    task: str | None = None


class UsageEvent(_Body):
    """Token counts of the whole run so far."""

    type: Literal["usage"] = "usage"
    usage: Usage


class ProgressEvent(_Body):
    """How a debate goes: `done` of `of` parts of `step` are through."""

    type: Literal["progress"] = "progress"
    step: str
    done: int
    of: int


class FinishedEvent(_Body):
    """The one end of a run. Reason error carries `error`; `winner` is the model whose text won a debate."""

    type: Literal["finished"] = "finished"
    reason: FinishReason
    winner: str | None = None
    error: dict[str, Any] | None = None
    choices: tuple[ChoiceEnd, ...] = ()
    debate: DebateReport | None = None
    cache: RecallReport | None = None
    rag: RagReport | None = None
    extra: dict[str, Any] | None = None  # response-level fields of the engine, such as system_fingerprint


EventBody = Annotated[
    RoleEvent | TokenEvent | ToolCallEvent | UsageEvent | ProgressEvent | FinishedEvent, Field(discriminator="type")
]
_BODY: Final[TypeAdapter[EventBody]] = TypeAdapter(EventBody)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of one run. `seq` counts 0, 1, 2 … without holes."""

    trace_id: str
    seq: int
    body: EventBody


def encode(event: RunEvent) -> bytes:
    """The JSON form: the body's fields beside v, seq and trace_id. Unset optional fields are left out."""
    body = event.body.model_dump(exclude_none=True, exclude_defaults=True)
    required = {name: getattr(event.body, name) for name in _ALWAYS[event.body.type]}
    return orjson.dumps(
        {"v": SCHEMA_VERSION, "seq": event.seq, "trace_id": event.trace_id, "type": event.body.type, **required, **body}
    )


# The contract's own fields stand in the JSON even when they equal a default.
_ALWAYS: Final[dict[str, tuple[str, ...]]] = {
    "role": ("role",),
    "token": ("text",),
    "tool_call": ("name", "arguments"),
    "usage": (),
    "progress": ("step", "done", "of"),
    "finished": ("reason", "winner"),
}


def decode(raw: bytes) -> RunEvent:
    """The inverse of encode. Raises ValueError for anything that is not an event of this schema version."""
    try:
        fields = orjson.loads(raw)
        version, seq, trace_id = fields.pop("v"), fields.pop("seq"), fields.pop("trace_id")
        if version != SCHEMA_VERSION:
            raise ValueError(f"event has schema version {version}, this reader knows {SCHEMA_VERSION}")
        return RunEvent(trace_id=str(trace_id), seq=int(seq), body=_BODY.validate_python(fields))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
        raise ValueError(f"not a run event: {wrong}") from None  # pydantic would quote the text, and this goes to logs
    except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"not a run event: {error}") from error
