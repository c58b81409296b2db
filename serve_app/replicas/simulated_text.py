"""The text of simulated answers: seeded words, cut into pieces like tokens. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from serve_app.configured import SimulatedConfig
from serve_app.replicas.simulated_request import Ask

_PROSE: Final = (
    "the answer of a model depends on what it was shown and how long it may think about each part while "
    "every careful reader weighs reasons for and against before one claim stands above another because evidence "
    "from many small trials adds up slowly whereas a single bright example often misleads people who want quick results "
    "in practice engineers measure first then change one thing at a time so that causes remain visible"
)
_WORDS: Final = _PROSE.split()
_PIECE: Final = re.compile(r"\s*\S+|\s+$")
_PIECE_LENGTH: Final = 8  # characters; a longer word is several tokens, as with a real tokenizer
_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Script:
    """What one choice will say."""

    pieces: tuple[str, ...]
    finish_reason: str
    stop_reason: str | None = None


def count_tokens(text: str) -> int:
    """Tokens of a text, as the simulation counts them."""
    return len(pieces_of(text))


def pieces_of(text: str) -> list[str]:
    """The text in pieces that give it back when joined."""
    return [word[i : i + _PIECE_LENGTH] for word in _PIECE.findall(text) for i in range(0, len(word), _PIECE_LENGTH)]


def write(ask: Ask, config: SimulatedConfig, choice: int) -> Script:
    """The answer of one choice: constrained, scripted or made of seeded words; then stop strings, then the token limit."""
    random = ask.random(config.seed, choice)
    if ask.tool is not None:
        return Script(("{}",), "tool_calls")
    if ask.constraint is not None:
        pieces = pieces_of(_constrained(ask.constraint, random))
    elif config.script is not None:
        pieces = pieces_of(config.script)
    else:
        pieces = _words(ask.max_tokens or config.default_tokens, random)
        if ask.max_tokens is not None:
            # More was to come: a generated answer takes all the tokens it may have.
            return _stopped(pieces, ask.stops) or Script(tuple(pieces), "length")
    stopped = _stopped(pieces, ask.stops) or Script(tuple(pieces), "stop")
    if ask.max_tokens is not None and len(stopped.pieces) > ask.max_tokens:
        return Script(stopped.pieces[: ask.max_tokens], "length")
    return stopped


def _words(count: int, random: Random) -> list[str]:
    words = [random.choice(_WORDS)[:_PIECE_LENGTH] for _ in range(count)]
    words[0] = words[0].capitalize()
    return [words[0], *(f" {word}" for word in words[1:])]


def _stopped(pieces: list[str], stops: tuple[str, ...]) -> Script | None:
    text = "".join(pieces)
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    end, stop = min(found)
    kept: list[str] = []
    for piece in pieces:
        if end <= 0:
            break
        kept.append(piece[:end])
        end -= len(piece)
    return Script(tuple(kept), "stop", stop)


def _constrained(constraint: Mapping[str, Any], random: Random) -> str:
    if choices := constraint.get("choice"):
        return str(random.choice(choices))
    return json.dumps(_instance(constraint["json"], random, _DEPTH))


def _instance(schema: Any, random: Random, depth: int) -> Any:
    """A small value that the schema allows, for the plain parts of JSON Schema."""
    if not isinstance(schema, dict) or depth == 0:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return random.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return _instance(schema[union][0], random, depth - 1)
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            return {name: _instance(part, random, depth - 1) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [_instance(schema.get("items"), random, depth - 1) for _ in range(max(1, schema.get("minItems", 1)))]
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return random.random() < 0.5
        case "null":
            return None
        case _:
            return random.choice(_WORDS)
