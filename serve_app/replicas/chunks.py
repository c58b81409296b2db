"""OpenAI chat chunks to run events. Pure."""

import hashlib
from collections.abc import Iterator
from typing import Any, Final, get_args

import orjson

from serve_app.errors import AifactoryError, BadRequest, NotFound, Overloaded, UpstreamFailed
from serve_app.events import (
    ChoiceEnd,
    EventBody,
    FinishedEvent,
    FinishReason,
    RoleEvent,
    TokenEvent,
    ToolCallEvent,
    Usage,
    UsageEvent,
)
from serve_app.telemetry import logger

# What every chunk carries and the events carry in another way.
_ENVELOPE: Final = frozenset({"id", "object", "created", "model", "choices", "usage"})
_REASONS: Final[frozenset[str]] = frozenset(get_args(FinishReason))
# The engine gave up: not an end that a caller may take for an answer.
_BROKEN_ENDS: Final = frozenset({"error", "abort", "cancelled"})


def parse_chunk(raw: object) -> dict[str, Any]:
    """One chunk as the replica sent it. Raises UpstreamFailed for nonsense, and the error that an error chunk carries."""
    try:
        chunk = orjson.loads(raw) if isinstance(raw, str | bytes) else raw
    except orjson.JSONDecodeError as error:
        raise UpstreamFailed(f"the replica sent a chunk that is not JSON: {error}") from error
    if not isinstance(chunk, dict):
        raise UpstreamFailed(f"the replica sent a {type(chunk).__name__} where a chunk was due")
    if "error" in chunk:
        raise error_from_replica(chunk["error"], status=None)
    return chunk


def error_from_replica(body: object, *, status: int | None) -> AifactoryError:
    """The error behind an `error` object of a replica; `status` wins over the code in the body."""
    if not isinstance(body, dict):
        return UpstreamFailed(f"the replica reported an error without a body: {body!r:.200}")
    message, code = str(body.get("message") or "unknown error"), body.get("code")
    param = str(body["param"]) if body.get("param") else None
    status = status or (code if isinstance(code, int) else 500)
    if status == 404:
        return NotFound(message, param=param, code=code if isinstance(code, str) else None)
    if status in (429, 503):
        return Overloaded(message, retry_after_s=1)
    if 400 <= status < 500:
        return BadRequest(message, param=param, code=code if isinstance(code, str) else None)
    return UpstreamFailed(message, param=param)


class ChunkReader:
    """Turns the chunks of one chat stream into events; `finish` says how the answer ended, and never invents an end.

    `choices` is how many the request asked for; `request_id` names the tool calls that the engine leaves without id.
    """

    def __init__(self, choices: int = 1, request_id: str = "") -> None:
        self._choices = choices
        self._request_id = request_id
        self._calls: set[tuple[int, int]] = set()  # (choice, call) that have begun
        self._token_ids: dict[int, list[int]] = {}
        self._begun: set[int] = set()
        self._ends: dict[int, ChoiceEnd] = {}
        self._completion_tokens: dict[int, int] = {}
        self._extra: dict[str, Any] = {}
        self._usage: Usage | None = None
        self._usage_reads = True

    def feed(self, raw: object) -> Iterator[EventBody]:
        """The events of one chunk, in order. Raises UpstreamFailed, or the error that the chunk carries."""
        chunk = parse_chunk(raw)
        try:
            yield from self._read(chunk)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UpstreamFailed(f"the replica sent a malformed chunk: {type(error).__name__}: {error}") from error

    @property
    def complete(self) -> bool:
        """Whether every choice has its end: all that may still come is the usage."""
        return len(self._ends) >= self._choices and not self._begun - self._ends.keys()

    def finish(self) -> FinishedEvent:
        """The end of the answer. Raises UpstreamFailed when a choice, or all of it, was cut."""
        if not self.complete:
            ended = f"{len(self._ends)} of {max(self._choices, len(self._begun))} choices were"
            raise UpstreamFailed(f"the replica's stream broke off: {ended} finished")
        ends = tuple(self._ends[index] for index in sorted(self._ends))
        reason: Any = ends[0].finish_reason
        return FinishedEvent(reason=reason if reason in _REASONS else "stop", choices=ends, extra=self._extra or None)

    def _read(self, chunk: dict[str, Any]) -> Iterator[EventBody]:
        choices = chunk["choices"]
        for choice in choices:
            yield from self._read_choice(choice)
        if (usage := chunk.get("usage")) and (total := self._total(usage, choices)) != self._usage:
            self._usage = total
            yield UsageEvent(usage=total)
        for name, value in chunk.items():
            if name not in _ENVELOPE and value is not None:
                self._extra[name] = value

    def _read_choice(self, choice: dict[str, Any]) -> Iterator[EventBody]:
        index, delta = int(choice["index"]), choice.get("delta") or {}
        self._begun.add(index)
        if role := delta.get("role"):
            yield RoleEvent(role=role, index=index)
        logprobs = choice.get("logprobs")
        if thought := delta.get("reasoning") or delta.get("reasoning_content"):
            yield TokenEvent(text=thought, index=index, reasoning=True, logprobs=logprobs)
            logprobs = None
        # A token may be half a character and so without text yet; its logprobs still count.
        if (text := delta.get("content") or "") or logprobs:
            yield TokenEvent(text=text, index=index, logprobs=logprobs)
        for call in delta.get("tool_calls") or ():
            yield self._read_call(index, call)
        if ids := choice.get("token_ids"):
            self._token_ids.setdefault(index, []).extend(ids)
        if reason := choice.get("finish_reason"):
            if reason in _BROKEN_ENDS:
                raise UpstreamFailed(f"the engine gave up on the request (finish_reason {reason!r})")
            self._ends[index] = ChoiceEnd(
                index=index,
                finish_reason=reason,
                stop_reason=choice.get("stop_reason"),
                token_ids=self._token_ids.get(index),
            )

    def _read_call(self, index: int, call: dict[str, Any]) -> ToolCallEvent:
        """A piece of a tool call. Its first piece has an id, and only that one: clients join what the pieces say."""
        function, number = call.get("function") or {}, int(call.get("index", 0))
        call_id = None
        if (index, number) not in self._calls:
            self._calls.add((index, number))
            call_id = call.get("id") or _call_id(self._request_id, index, number)
        return ToolCallEvent(
            name=function.get("name"), arguments=function.get("arguments") or "", call=number, call_id=call_id, index=index
        )

    def _total(self, usage: dict[str, Any], choices: list[dict[str, Any]]) -> Usage:
        """Usage of the whole answer; what cannot be read is left out: it does not spoil an answer."""
        try:
            return self._sum_usage(usage, choices)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if self._usage_reads:
                self._usage_reads = False
                logger.warning("the replica sent usage that cannot be read: {!r:.200}: {}", usage, error)
            return self._usage or Usage()

    def _sum_usage(self, usage: dict[str, Any], choices: list[dict[str, Any]]) -> Usage:
        """Usage of the whole answer: a chunk with choices counts only the tokens of its own choice."""
        fields = {name: usage[name] for name in Usage.model_fields if usage.get(name) is not None}
        if choices:
            for choice in choices:
                self._completion_tokens[int(choice["index"])] = int(usage.get("completion_tokens") or 0)
            completion, prompt = sum(self._completion_tokens.values()), int(usage.get("prompt_tokens") or 0)
            fields |= {"completion_tokens": completion, "total_tokens": prompt + completion}
        return Usage(**fields)


def _call_id(request_id: str, index: int, number: int) -> str:
    """Unique per call, as long as OpenAI's: some services take no longer ones back."""
    return "call_" + hashlib.sha256(f"{request_id}/{index}/{number}".encode()).hexdigest()[:24]
