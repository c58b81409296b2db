"""Run events to OpenAI's wire: chunks of a stream, or one JSON body.

The end is never faked: a run that did not end well ends its stream with one `data: {"error": …}` and no `[DONE]`.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson

from serve_app.answers import AnswerBuilder
from serve_app.errors import AifactoryError, UpstreamFailed, from_body
from serve_app.events import ChoiceEnd, FinishedEvent, ProgressEvent, RoleEvent, RunEvent, TokenEvent, ToolCallEvent, UsageEvent
from serve_app.gateway.counted_stream import CountedStream
from serve_app.lifecycle.ahead import ReadAhead
from serve_app.lifecycle.reply import Reply
from serve_app.runs import Answer
from serve_app.telemetry import logger

# No blank line behind it: openai's decoder takes one for an event without data once there was an id, and breaks.
KEEPALIVE = b": keep-alive\n"
DONE = b"data: [DONE]\n\n"
_BROKEN = ("error", "cancelled")


class Renderer:
    """Turns the events of one reply into SSE frames. `drafts` false leaves the debaters' drafts out."""

    def __init__(self, reply: Reply, *, include_usage: bool, drafts: bool) -> None:
        self._reply = reply
        self._include_usage = include_usage
        self._drafts = drafts
        self._builder = AnswerBuilder(reply.model)

    def frames(self, event: RunEvent) -> list[bytes]:
        """The frames of one event. The last one carries the event's seq as SSE id, so a resume starts after it."""
        match event.body:
            case RoleEvent(role=role, index=index):
                chunks = [self._chunk(index, {"role": role, "content": ""})]
            case TokenEvent(task=str(task), text=text):
                chunks = [{**self._chunk(0, {"reasoning_content": text}), **_whose(event.body, task)}] if self._drafts else []
            case TokenEvent() as token:
                delta = _thought(token.text) if token.reasoning else {"content": token.text}
                chunks = [self._chunk(token.index, delta, logprobs=token.logprobs)]
            case ToolCallEvent(task=None) as piece:
                chunks = [self._chunk(piece.index, {"tool_calls": [_call_delta(piece)]})]
            case UsageEvent():
                self._builder.add(event.body)
                chunks = []
            case FinishedEvent() as end:
                return self._end(event.seq, end)
            case ProgressEvent() | ToolCallEvent():
                chunks = []
        return [_frame(chunk, event.seq) for chunk in chunks]

    def preface(self) -> list[bytes]:
        """What a client may show until the answer that counts comes: never as content, which would mix the two."""
        near = self._reply.provisional
        if near is None:
            return []
        chunk = self._chunk(0, {"role": "assistant", "reasoning_content": near.answer.text})
        return [_frame({**chunk, "x_provisional": True}, None)]

    def _end(self, seq: int, end: FinishedEvent) -> list[bytes]:
        if end.reason in _BROKEN:
            return [error_frame(error_of(end), seq)]
        ends = [self._last_of(choice) for choice in end.choices or (ChoiceEnd(finish_reason=end.reason),)]
        usage = [{**self._head(), "choices": [], "usage": usage_json(self._builder)}] if self._include_usage else []
        further = dict(end.extra or {})
        if (mark := further.pop("system_fingerprint", None)) is not None:
            for chunk in usage or ends:  # where vLLM puts it
                chunk["system_fingerprint"] = mark
        *others, last = [*ends, *usage]
        last |= {**further, "x_factory": x_factory(self._reply, end)}
        return [*(_frame(chunk, None) for chunk in others), _frame(last, seq), DONE]

    def _last_of(self, choice: ChoiceEnd) -> dict[str, Any]:
        chunk = self._chunk(choice.index, {}, finish=choice.finish_reason)
        chunk["choices"][0] |= _of_end(choice)
        return chunk

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._reply.trace_id}",
            "object": "chat.completion.chunk",
            "created": self._reply.created,
            "model": self._reply.model,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(), "choices": [choice]}


class Reader:
    """Reads the events of one reply. Waiting may be given up and taken up again without losing an event."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self._ahead: ReadAhead[RunEvent] | None = None

    async def next(self, timeout_s: float) -> RunEvent | None:
        """The next event, or None when none came within `timeout_s`. Raises UpstreamFailed when there is no more."""
        if self._ahead is None:
            self._ahead = ReadAhead(self.reply.events)
        try:
            return await self._ahead.next(timeout_s)
        except StopAsyncIteration:
            raise _broke_off() from None

    async def first(self, patience_s: float) -> RunEvent | None:
        """The first event, so that an early error gets its own HTTP status; None when it does not come in time.

        Raises the run's error when the run ended before it began to answer.
        """
        event = await self.next(patience_s)
        if event is not None:
            raise_if_broken(event)
        return event

    async def close(self) -> None:
        """Leave the run, even when the task that asks for it is being cancelled."""
        with anyio.CancelScope(shield=True):
            if self._ahead is not None:
                await self._ahead.close()
            await self.reply.close()


class EventStream(CountedStream):
    """The stream of one reply. When it ends, for whatever reason, the reply is closed."""

    def __init__(
        self, reader: Reader, first: RunEvent | None, renderer: Renderer, *, keepalive_s: float, headers: dict[str, str]
    ) -> None:
        self._reader = reader
        frames = self._frames(first, renderer, keepalive_s)
        super().__init__(frames, route=reader.reply.route, close=reader.close, headers=headers)

    async def _frames(self, event: RunEvent | None, renderer: Renderer, keepalive_s: float) -> AsyncIterator[bytes]:
        try:
            for frame in renderer.preface():
                yield frame
            due = time.monotonic() + keepalive_s
            while True:
                if event is not None and isinstance(event.body, FinishedEvent):
                    self.ended(_code_of(event.body))
                frames = [KEEPALIVE] if event is None else renderer.frames(event)
                if not frames and time.monotonic() >= due:
                    frames = [KEEPALIVE]  # events come, but none that this client is shown
                for frame in frames:
                    yield frame
                if self._finished:
                    return
                if frames:
                    due = time.monotonic() + keepalive_s
                event = await self._reader.next(max(0.0, due - time.monotonic()))
        except AifactoryError as error:
            self.ended(error.code)
            yield error_frame(error)
        except Exception as error:  # noqa: BLE001 - a cut stream must say so, whatever cut it
            logger.opt(exception=error).error("stream broke", trace_id=self._reader.reply.trace_id)
            self.ended(AifactoryError.default_code)
            yield error_frame(AifactoryError("the stream broke; the log has the cause under this trace_id"))


async def collect(reader: Reader) -> dict[str, Any]:
    """The whole reply as one `chat.completion` object. Raises the run's error."""
    builder = AnswerBuilder(reader.reply.model)
    async for event in reader.reply.events:
        raise_if_broken(event)
        if isinstance(event.body, FinishedEvent):
            return completion(reader.reply, builder.answer(event.body), builder, event.body)
        builder.add(event.body)
    raise _broke_off()


def completion(reply: Reply, answer: Answer, builder: AnswerBuilder, end: FinishedEvent) -> dict[str, Any]:
    """The JSON body of a non-stream answer; the same answer always gives the same bytes."""
    choices = []
    for position, message in enumerate(answer.messages):
        ended = answer.ends[position]
        choice = {
            "index": ended.index,
            "message": _message(message),
            "logprobs": answer.logprobs[position] if position < len(answer.logprobs) else None,
            "finish_reason": ended.finish_reason,
        }
        choices.append(choice | _of_end(ended))
    return {
        "id": f"chatcmpl-{reply.trace_id}",
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": choices,
        "usage": usage_json(builder),
        **(end.extra or {}),
        "x_factory": x_factory(reply, end),
    }


def x_factory(reply: Reply, end: FinishedEvent) -> dict[str, Any]:
    """The one extension object of an answer."""
    report = end.cache if end.cache is not None and reply.cache.result != "attached" else reply.cache
    fields: dict[str, Any] = {"trace_id": reply.trace_id, "route": reply.route, "cache": report.model_dump()}
    if reply.provisional is not None:
        near = reply.provisional
        fields["provisional"] = {"content": near.answer.text, "similarity": round(near.hit.similarity, 4)}
    if end.debate is not None:
        fields["debate"] = end.debate.facts()
    if end.rag is not None:
        fields["rag"] = end.rag.facts(sources=reply.sources)
    return fields


def raise_if_broken(event: RunEvent) -> None:
    """Raise the error of a run that did not end well."""
    if isinstance(event.body, FinishedEvent) and event.body.reason in _BROKEN:
        raise error_of(event.body)


def error_of(end: FinishedEvent) -> AifactoryError:
    """The error that a run ended with."""
    unsaid = {"message": f"the run ended as {end.reason}", "code": end.reason if end.reason == "cancelled" else None}
    return from_body(end.error or unsaid)


def error_frame(error: AifactoryError, seq: int | None = None) -> bytes:
    """The frame that ends a broken stream."""
    return _frame({"error": error.body()}, seq)


def usage_json(builder: AnswerBuilder) -> dict[str, Any]:
    return builder.usage.model_dump(exclude_none=True)


def _broke_off() -> UpstreamFailed:
    return UpstreamFailed("the run's events stopped before it was finished")


def _code_of(end: FinishedEvent) -> str | None:
    return error_of(end).code if end.reason in _BROKEN else None


def _thought(text: str) -> dict[str, str]:
    """A model's own reasoning: under vLLM's name, and under the older one that many clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _message(kept: dict[str, Any]) -> dict[str, Any]:
    thought = kept.get("reasoning_content")
    return {**kept, **_thought(thought)} if thought else kept


def _of_end(end: ChoiceEnd) -> dict[str, Any]:
    """What vLLM says of a choice's end beyond OpenAI's fields."""
    return end.model_dump(include={"stop_reason", "token_ids"}, exclude_none=True)


def _whose(draft: TokenEvent, task: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"x_task": task}
    if draft.round > 1:
        fields["x_round"] = draft.round
    if draft.attempt > 1:
        fields["x_attempt"] = draft.attempt
    return fields


def _call_delta(piece: ToolCallEvent) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": piece.arguments}
    delta: dict[str, Any] = {"index": piece.call, "function": function}
    if piece.call_id is not None:
        delta |= {"id": piece.call_id, "type": "function"}
    if piece.name is not None:
        function["name"] = piece.name
    return delta


def _frame(chunk: dict[str, Any], seq: int | None) -> bytes:
    head = b"" if seq is None else b"id: %d\n" % seq
    return head + b"data: " + orjson.dumps(chunk) + b"\n\n"
