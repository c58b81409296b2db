"""From events to a whole answer, and back: how a stream is collected, stored and replayed. Pure."""

from collections.abc import Iterator
from typing import Any

from serve_app.errors import AifactoryError, Cancelled
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
from serve_app.runs import Answer, Outcome, RunStatus

_REASONS: frozenset[str] = frozenset({"stop", "length", "tool_calls", "content_filter"})


class AnswerBuilder:
    """Collects the events of one answer. Drafts of debaters (`task` set) are not part of the answer."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage = Usage()
        self._choices: dict[int, _Choice] = {}

    @property
    def empty(self) -> bool:
        """True until a first piece of text or of a tool call came."""
        return not any(c.text or c.reasoning or c.calls for c in self._choices.values())

    def add(self, body: EventBody) -> None:
        match body:
            case RoleEvent():
                self._choice(body.index).role = body.role
            case TokenEvent(task=None):
                self._choice(body.index).add_token(body)
            case ToolCallEvent(task=None):
                self._choice(body.index).add_call(body)
            case UsageEvent():
                self.usage = body.usage
            case _:
                pass

    def answer(self, end: FinishedEvent) -> Answer:
        """The answer so far, ended as `end` says."""
        order = sorted(self._choices) or [0]
        ends = {e.index: e for e in end.choices}
        return Answer(
            model=self.model,
            messages=tuple(self._choice(i).message() for i in order),
            ends=tuple(ends.get(i, ChoiceEnd(index=i, finish_reason=end.reason)) for i in order),
            usage=self.usage,
            winner=end.winner,
            debate=end.debate,
            cache=end.cache,
            logprobs=tuple(self._choice(i).logprobs for i in order),
            extra=end.extra,
            rag=end.rag,
        )

    def _choice(self, index: int) -> "_Choice":
        return self._choices.setdefault(index, _Choice())


class _Choice:
    def __init__(self) -> None:
        self.role = "assistant"
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, Any] | None = None

    def add_token(self, token: TokenEvent) -> None:
        (self.reasoning if token.reasoning else self.text).append(token.text)
        if token.logprobs:
            if self.logprobs is None:
                self.logprobs = {}
            for name, entries in token.logprobs.items():
                if isinstance(entries, list):
                    self.logprobs.setdefault(name, []).extend(entries)

    def add_call(self, piece: ToolCallEvent) -> None:
        call = self.calls.setdefault(piece.call, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        if piece.call_id:
            call["id"] = piece.call_id
        if piece.name:
            call["function"]["name"] = piece.name
        call["function"]["arguments"] += piece.arguments

    def message(self) -> dict[str, Any]:
        calls = [self.calls[i] for i in sorted(self.calls)]
        text = "".join(self.text)
        message: dict[str, Any] = {"role": self.role, "content": text if text or not calls else None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if calls:
            message["tool_calls"] = calls
        return message


def succeeded(answer: Answer) -> Outcome:
    """The outcome of a run that has its answer."""
    reason = answer.ends[0].finish_reason if answer.ends else "stop"
    return Outcome(RunStatus.SUCCEEDED, _reason(reason), answer.usage, answer=answer)


def failed(error: AifactoryError, usage: Usage) -> Outcome:
    """The outcome of a run that broke. `usage`: what it had used until then."""
    return Outcome(RunStatus.FAILED, "error", usage, error=error.record())


def cancelled(error: Cancelled, usage: Usage) -> Outcome:
    """The outcome of a run that was stopped. `usage`: what it had used until then."""
    return Outcome(RunStatus.CANCELLED, "cancelled", usage, error=error.record())


def finished_event(outcome: Outcome) -> FinishedEvent:
    """The `finished` event that tells of an outcome."""
    answer = outcome.answer
    if answer is None:
        return FinishedEvent(reason=outcome.reason, error=outcome.error)
    return FinishedEvent(
        reason=outcome.reason,
        winner=answer.winner,
        choices=answer.ends,
        debate=answer.debate,
        cache=answer.cache,
        extra=answer.extra,
        rag=answer.rag,
    )


def replay(answer: Answer) -> Iterator[EventBody]:
    """A stored answer as the events of a normal stream, `finished` included."""
    for position, message in enumerate(answer.messages):
        index = answer.ends[position].index if position < len(answer.ends) else position
        logprobs = answer.logprobs[position] if position < len(answer.logprobs) else None
        yield RoleEvent(role=str(message.get("role", "assistant")), index=index)
        if message.get("reasoning_content"):
            yield TokenEvent(text=message["reasoning_content"], reasoning=True, index=index)
        if message.get("content") or logprobs:
            yield TokenEvent(text=message.get("content") or "", index=index, logprobs=logprobs)
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call["function"]
            yield ToolCallEvent(
                name=function["name"], arguments=function["arguments"], call=number, call_id=call.get("id"), index=index
            )
    yield UsageEvent(usage=answer.usage)
    yield finished_event(succeeded(answer))


def _reason(value: str) -> FinishReason:
    return value if value in _REASONS else "stop"  # type: ignore[return-value]
