"""The parameters of a request as the models of a debate get them. Pure."""

from typing import Any, Final

# The reply is one plain text: these would make it something else.
_NOT_FOR_DRAFTS: Final = frozenset(
    {"n", "stream", "stream_options", "logprobs", "top_logprobs"}
    | {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}
)
_LIMITS: Final = ("max_tokens", "max_completion_tokens")


def without_extras(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without those that ask for more than one plain text."""
    return {k: v for k, v in params.items() if k not in _NOT_FOR_DRAFTS}


def bounded(params: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """The parameters with at most `max_tokens` tokens to answer; None leaves them as they are."""
    if max_tokens is None:
        return params
    asked = [params[name] for name in _LIMITS if params.get(name) is not None]
    limit = min([max_tokens, *asked])
    bound = {k: v for k, v in params.items() if k not in _LIMITS} | {"max_tokens": limit}
    if bound.get("min_tokens") is not None:
        bound["min_tokens"] = min(bound["min_tokens"], limit)  # the engine refuses a least above the most
    return bound
