"""The smallest client of our own API: what `chat`, `debate` and the demo need."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.configured import DEBATE_MODEL_ID
from serve_app.local.deployment import create_key
from serve_app.local.files import write_private
from serve_app.local.state import StackState, settings_file
from serve_app.settings import Settings, settings_from_dict

DEFAULT_PROJECT = "default"
# Between two bytes; the server sends a comment line every few seconds while it works.
_SILENCE_S = 120.0


class ApiError(RuntimeError):
    """The API refused a request, or cut an answer."""


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer: a draft's text (with its task's label), or the answer's, or the closing facts.

    A higher `attempt` of a draft begins it anew.
    """

    text: str = ""
    task: str | None = None
    round: int = 1
    attempt: int = 1
    facts: dict[str, Any] | None = None


def stack_settings(state: StackState) -> Settings:
    """The settings that the running stack was started with."""
    return settings_from_dict(json.loads(settings_file(state.state_dir).read_text()))


def ensure_key(state: StackState) -> str | None:
    """Make and store the first API key unless a valid one is there. Returns the key only when it is new."""
    path = state.api_key_file
    if path.exists():
        answer = httpx.get(f"{state.origin}/v1/models", headers=_login(state), timeout=30, trust_env=False)
        if answer.status_code not in (401, 403):
            return None
    if state.postgres_dsn is None:
        raise ApiError("the stack has no Postgres address")
    key = create_key(state.postgres_dsn, DEFAULT_PROJECT)
    write_private(path, key + "\n")
    return key


def ask(state: StackState, model: str, text: str, **fields: Any) -> Iterator[Piece]:
    """Stream one chat completion. Raises ApiError if the API refuses, or if the answer ends without its end mark."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **fields}
    url = f"{state.origin}/v1/chat/completions"
    timeout = httpx.Timeout(30, read=_SILENCE_S)
    try:
        with httpx.stream("POST", url, json=body, headers=_login(state), timeout=timeout, trust_env=False) as answer:
            if answer.status_code != 200:
                answer.read()
                raise ApiError(_message(answer.text, answer.status_code))
            yield from _pieces(answer.iter_lines())
    except httpx.HTTPError as error:
        raise ApiError(f"{url}: {error or type(error).__name__}; is the stack up? `aifactory status` tells") from error


def debate(state: StackState, text: str, **fields: Any) -> Iterator[Piece]:
    """Stream one debate: the drafts, then the answer."""
    return ask(state, DEBATE_MODEL_ID, text, **fields)


def _pieces(lines: Iterator[str]) -> Iterator[Piece]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        payload = line.removeprefix("data:").strip()
        if payload == "[DONE]":
            return
        chunk = json.loads(payload)
        if "error" in chunk:
            raise ApiError(f"the answer was cut: {chunk['error'].get('message')}")
        for choice in chunk.get("choices", []):
            delta = choice.get("delta") or {}
            if delta.get("reasoning_content"):
                task = chunk.get("x_task") or choice.get("x_task") or "thought"
                yield Piece(delta["reasoning_content"], task, chunk.get("x_round", 1), chunk.get("x_attempt", 1))
            if delta.get("content"):
                yield Piece(delta["content"])
        if "x_factory" in chunk:
            yield Piece(facts=chunk["x_factory"])
    raise ApiError("the connection closed before the answer's end")


def _login(state: StackState) -> dict[str, str]:
    try:
        return {"Authorization": f"Bearer {state.api_key_file.read_text().strip()}"}
    except FileNotFoundError as error:
        raise ApiError(
            f"{state.api_key_file} is missing: make a key with `aifactory keys create --project {DEFAULT_PROJECT}`"
        ) from error


def _message(text: str, status: int) -> str:
    try:
        return f"the API answered {status}: {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the API answered {status}: {text[:300]}"
