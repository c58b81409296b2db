"""A whole chat completion as the chunks of a stream. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

# Fields of a response that a chunk carries under the same name in another way.
_HEAD: Final = ("id", "created", "model")
_TAKEN_APART: Final = frozenset({*_HEAD, "object", "choices", "usage"})
_OF_CHOICE: Final = ("finish_reason", "stop_reason", "token_ids")


def chunks_of(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One chunk per choice, then one with the usage and every further field of the response."""
    head = {name: response[name] for name in _HEAD} | {"object": "chat.completion.chunk"}
    for choice in response["choices"]:
        delta = dict(choice["message"])
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        end = {name: choice[name] for name in _OF_CHOICE if choice.get(name) is not None}
        yield {**head, "choices": [{"index": choice["index"], "delta": delta, "logprobs": choice.get("logprobs"), **end}]}
    further = {name: value for name, value in response.items() if name not in _TAKEN_APART}
    yield {**head, **further, "choices": [], "usage": response["usage"]}


def comes_whole(body: Mapping[str, Any]) -> bool:
    """Whether vLLM refuses to stream this chat request, so that nothing comes before all of it."""
    return bool(body.get("prompt_logprobs") or body.get("use_beam_search"))
