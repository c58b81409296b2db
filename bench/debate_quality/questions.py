"""The labelled questions that ship with the repository, and the choice of a subset."""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

FILE: Final = Path(__file__).parent / "questions.jsonl"
Kind = Literal["one_step", "two_steps", "fact"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Question(BaseModel):
    """One line of questions.jsonl. `answers`: every accepted spelling. `expression`: how arithmetic is checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    kind: Kind
    answer_type: Literal["number", "text"]
    question: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    expression: str | None = None


def load(path: Path = FILE) -> list[Question]:
    """All questions in the order of the file. Raises pydantic's ValidationError for a bad line."""
    return [Question.model_validate_json(line) for line in path.read_text().splitlines()]


def choose(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """A seeded subset with as many of each kind as there are, in turn. A larger count with the same seed only adds to it."""
    groups = []
    for kind in KINDS:
        group = [question for question in questions if question.kind == kind]
        Random(f"{seed}/{kind}").shuffle(group)
        groups.append(group)
    mixed = [question for question in chain.from_iterable(zip_longest(*groups)) if question is not None]
    return mixed[:count]


def digest(questions: Sequence[Question]) -> str:
    """A short name of this very set: replies to another version of it must not be mixed in."""
    lines = [question.model_dump() for question in questions]
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:12]
