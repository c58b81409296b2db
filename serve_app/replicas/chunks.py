"""OpenAI chat chunks to run events. Pure."""

from collections.abc import Iterator
from typing import Any, Final, get_args

import orjson
from pydantic import ValidationError

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
        return BadRequest(message, param=param)
    return UpstreamFailed(message, param=param)


class ChunkReader:
    """Turns the chunks of one chat stream into events; `finish` says how the answer ended, and never invents an end."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._ends: dict[int, ChoiceEnd] = {}
        self._completion_tokens: dict[int, int] = {}
        self._extra: dict[str, Any] = {}
        self._usage: Usage | None = None

    def feed(self, raw: object) -> Iterator[EventBody]:
        """The events of one chunk, in order. Raises UpstreamFailed, or the error that the chunk carries."""
        chunk = parse_chunk(raw)
        try:
            yield from self._read(chunk)
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise UpstreamFailed(f"the replica sent a malformed chunk: {type(error).__name__}: {error}") from error

    def finish(self) -> FinishedEvent:
        """The end of the answer. Raises UpstreamFailed when a choice, or all of it, was cut."""
        open_choices = sorted(self._begun - set(self._ends))
        if not self._ends or open_choices:
            raise UpstreamFailed(
                f"the replica's stream ended before choice {open_choices[0] if open_choices else 0} was finished"
            )
        ends = tuple(self._ends[index] for index in sorted(self._ends))
        reason: Any = ends[0].finish_reason
        return FinishedEvent(reason=reason if reason in _REASONS else "stop", choices=ends, extra=self._extra or None)

    def _read(self, chunk: dict[str, Any]) -> Iterator[EventBody]:
        choices = chunk["choices"]
        for choice in choices:
            yield from self._read_choice(choice)
        if usage := chunk.get("usage"):
            total = self._sum_usage(usage, choices)
            if total != self._usage:
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
            function = call.get("function") or {}
            yield ToolCallEvent(
                name=function.get("name"),
                arguments=function.get("arguments") or "",
                call=call.get("index", 0),
                call_id=call.get("id"),
                index=index,
            )
        if reason := choice.get("finish_reason"):
            if reason in _BROKEN_ENDS:
                raise UpstreamFailed(f"the engine gave up on the request (finish_reason {reason!r})")
            self._ends[index] = ChoiceEnd(index=index, finish_reason=reason, stop_reason=choice.get("stop_reason"))

    def _sum_usage(self, usage: dict[str, Any], choices: list[dict[str, Any]]) -> Usage:
        """Usage of the whole answer: a chunk with choices counts only the tokens of its own choice."""
        fields = {name: usage[name] for name in Usage.model_fields if usage.get(name) is not None}
        if choices:
            for choice in choices:
                self._completion_tokens[int(choice["index"])] = int(usage.get("completion_tokens") or 0)
            completion, prompt = sum(self._completion_tokens.values()), int(usage.get("prompt_tokens") or 0)
            fields |= {"completion_tokens": completion, "total_tokens": prompt + completion}
        return Usage(**fields)
