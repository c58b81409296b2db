"""One call to a replica as a span, by OpenTelemetry's conventions for generative AI."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

from serve_app.events import EventBody, FinishedEvent, TokenEvent, ToolCallEvent, Usage, UsageEvent
from serve_app.runs import Run
from serve_app.spans import Fact, Place, Span, emit, new_span_id, traced

PROVIDER: Final = "vllm"  # a simulated engine speaks as vLLM does, and is called so too
_NUMBERS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}


def model_call(
    run: Run,
    stream: AsyncGenerator[EventBody, None],
    *,
    model: str,
    body: Mapping[str, Any],
    request_id: str,
    facts: Mapping[str, Fact | None] | None = None,
) -> AsyncGenerator[EventBody, None]:
    """The stream of ports.Replicas.stream, watched; the stream itself when nobody wants the span.

    Closing it closes the stream. `model` as the caller names it; `facts` join the span's attributes.
    """
    place = traced(run.trace_id, run.traceparent)
    return stream if place is None else _watched(place, stream, model, body, request_id, facts or {})


async def _watched(
    place: Place,
    stream: AsyncGenerator[EventBody, None],
    model: str,
    body: Mapping[str, Any],
    request_id: str,
    facts: Mapping[str, Fact | None],
) -> AsyncGenerator[EventBody, None]:
    span = Span(f"chat {model}", "client", place, new_span_id(), place.execution, time.time())
    span.note({"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER, **facts})
    span.note({"gen_ai.request.model": model, "gen_ai.request.stream": True, **_asked(body)})
    try:
        async with aclosing(stream):
            async for event in stream:
                _hear(span, event, model, request_id)
                yield event
    except BaseException as error:
        if span.end is None:  # whoever has the end need not read on
            span.fail(error)
        raise
    finally:
        emit(span)


def _hear(span: Span, event: EventBody, model: str, request_id: str) -> None:
    match event:
        case TokenEvent() | ToolCallEvent() if not span.moments:
            now = time.time()
            span.moments["first token"] = now
            span.note({"gen_ai.response.time_to_first_chunk": round(now - span.start, 6)})
            span.note({"gen_ai.response.model": model, "gen_ai.response.id": request_id})
        case UsageEvent(usage=usage):
            span.note(_used(usage))
        case FinishedEvent():
            reasons = [end.finish_reason for end in event.choices] or [event.reason]
            span.note({"gen_ai.response.model": model, "gen_ai.response.id": request_id})
            span.note({"gen_ai.response.finish_reasons": reasons})
            if event.reason == "error":
                span.failed, span.error = True, str((event.error or {}).get("code") or "error")
            span.end = time.time()
        case _:
            pass


def _asked(body: Mapping[str, Any]) -> dict[str, Fact]:
    """The numbers of a request; what is no number the replica refuses."""
    facts: dict[str, Fact] = {fact: body[name] for name, fact in _NUMBERS.items() if _is_number(body.get(name))}
    if _is_number(body.get("n")) and body["n"] != 1:
        facts["gen_ai.request.choice.count"] = body["n"]
    return facts


def _is_number(value: Any) -> bool:
    # OTLP's whole numbers have 64 bits.
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _used(usage: Usage) -> dict[str, Fact | None]:
    cached = (usage.prompt_tokens_details or {}).get("cached_tokens")
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": cached if _is_number(cached) else None,
    }
