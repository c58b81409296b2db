"""Texts as the models of a debate read them: bounded, quoted, without names. Pure.

What a debater wrote is shown as a quotation, each line behind `> `. Only we write lines without it, so an answer that
contains "Answer B:" cannot pass for another one.
"""

from collections.abc import Sequence
from typing import Any, Final

from serve_app.runs import INSTRUCTING

_MARK: Final = " […] "
_TAIL_PART: Final = 3  # a third of a cut text is its end, where conclusions stand


def plain_text(content: Any) -> str:
    """The text of a message's content, whether a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text")
    return ""


def question_text(messages: Sequence[dict[str, Any]]) -> str:
    """The conversation as the judge reads it: the question alone, or who said what."""
    said = [(str(m.get("role", "user")), _said(m)) for m in messages if m.get("role") not in INSTRUCTING]
    if len(said) == 1:
        return said[0][1]
    return "\n".join(f"{role}: {text}" for role, text in said)


def _said(message: dict[str, Any]) -> str:
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    called = [f"[called {f.get('name', '')} with {f.get('arguments', '')}]" for f in calls]
    return "\n".join(part for part in (plain_text(message.get("content")), *called) if part)


def instructions_text(messages: Sequence[dict[str, Any]]) -> str:
    """What the request's system messages ask for; empty without any."""
    return "\n\n".join(plain_text(m.get("content")) for m in messages if m.get("role") in INSTRUCTING)


def cut(text: str, limit: int) -> str:
    """At most about `limit` characters: the start and the end of a text, its middle left out."""
    text = text.strip()
    if len(text) <= limit:
        return text
    tail = limit // _TAIL_PART
    return text[: limit - tail] + _MARK + text[len(text) - tail :]


def quoted(text: str, limit: int) -> str:
    """At most about `limit` characters of a text, every line behind `> `."""
    return "\n".join(f"> {line}" for line in cut(text, limit).splitlines())


def share(room: int, most: int, parts: int) -> int:
    """Characters for each of `parts` texts that have `room` together, and `most` each."""
    return min(most, room // max(1, parts))
