"""What a simulated replica understands of a request. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from serve_app.errors import BadRequest

_MAX_CHOICES: Final = 128
_MAX_TOKENS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request. `max_tokens` None: as long as the answer likes.

    `constraint` is `{"choice": […]}` or `{"json": schema}`; `tool` is the tool that must be called.
    """

    prompt: str
    max_tokens: int | None
    choices: int
    stops: tuple[str, ...]
    logprobs: bool
    seed: int
    constraint: Mapping[str, Any] | None
    tool: str | None

    def random(self, config_seed: int, choice: int) -> Random:
        """The same request, seed and choice give the same numbers, in every process."""
        key = f"{config_seed}|{self.seed}|{choice}|{self.prompt}"
        return Random(hashlib.sha256(key.encode()).digest())  # noqa: S311 - text, not secrets


def read_chat(body: Mapping[str, Any]) -> Ask:
    """Check a chat request. Raises BadRequest that names the field."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: at least one message is needed", param="messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"messages.{number}: a message is an object with a role", param="messages")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return _read(body, json.dumps(messages, sort_keys=True), _integer(body, limit, 1, _MAX_TOKENS), bool(body.get("logprobs")))


def read_completion(body: Mapping[str, Any]) -> list[Ask]:
    """Check a legacy completion: one Ask per prompt. Raises BadRequest that names the field."""
    prompt = body.get("prompt")
    prompts: Sequence[Any] = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    if not prompts or not all((isinstance(p, str) and p) or _are_ids(p) for p in prompts):
        raise BadRequest("prompt: give a text, a list of texts, token ids, or a list of lists of them", param="prompt")
    limit = _integer(body, "max_tokens", 1, _MAX_TOKENS) or 16  # OpenAI's default for completions
    return [
        _read(body, p if isinstance(p, str) else " ".join(map(str, p)), limit, body.get("logprobs") is not None) for p in prompts
    ]


def _read(body: Mapping[str, Any], prompt: str, max_tokens: int | None, logprobs: bool) -> Ask:
    _number(body, "temperature", 0, float("inf"))
    _number(body, "top_p", 0, 1)
    _number(body, "presence_penalty", -2, 2)
    _number(body, "frequency_penalty", -2, 2)
    return Ask(
        prompt=prompt,
        max_tokens=max_tokens,
        choices=_integer(body, "n", 1, _MAX_CHOICES) or 1,
        stops=_stops(body.get("stop")),
        logprobs=logprobs,
        seed=_integer(body, "seed", -(2**63), 2**63 - 1) or 0,
        constraint=_constraint(body),
        tool=_forced_tool(body),
    )


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int) for item in value)


def _integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}, got {value!r}", param=name)
    return value


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high):
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}, got {value!r}", param=name)


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise BadRequest("stop must be a text or a list of texts, none of them empty", param="stop")
    return tuple(stops)


def _constraint(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`{"choice": […]}` or `{"json": schema}`, from structured_outputs or response_format."""
    wanted = body.get("structured_outputs")
    if wanted is not None:
        if not isinstance(wanted, dict):
            raise BadRequest("structured_outputs must be an object", param="structured_outputs")
        if choices := wanted.get("choice"):
            if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
                raise BadRequest("structured_outputs.choice must be a list of texts", param="structured_outputs")
            return {"choice": choices}
        if (schema := wanted.get("json")) is not None:
            return {"json": json.loads(schema) if isinstance(schema, str) else schema}
        raise BadRequest("a simulated replica knows structured_outputs choice and json only", param="structured_outputs")
    shape = body.get("response_format")
    if shape is None or (isinstance(shape, dict) and shape.get("type") == "text"):
        return None
    if isinstance(shape, dict) and shape.get("type") == "json_object":
        return {"json": {"type": "object", "properties": {"text": {"type": "string"}}}}
    schema = shape.get("json_schema", {}).get("schema") if isinstance(shape, dict) else None
    if not isinstance(schema, dict):
        raise BadRequest(
            "response_format must be of type text, json_object, or json_schema with a schema", param="response_format"
        )
    return {"json": schema}


def _forced_tool(body: Mapping[str, Any]) -> str | None:
    """The tool that tool_choice makes the model call; a simulated model never calls one of its own accord."""
    choice, tools = body.get("tool_choice"), body.get("tools") or []
    names = [tool["function"]["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict)]
    if choice == "required" and names:
        return str(names[0])
    if not isinstance(choice, dict):
        return None
    name = (choice.get("function") or {}).get("name")
    if name not in names:
        raise BadRequest(f"tool_choice names {name!r}, which is not among tools", param="tool_choice")
    return str(name)
