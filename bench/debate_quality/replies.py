"""What was asked and said, one JSON line each, in a file that an interrupted run goes on from."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Strategy = Literal["judge", "vote", "consensus", "synthesize"]
SINGLE: Final = "single"
SAMPLE: Final = "sample"


class Debated(BaseModel):
    """A way to debate that is measured."""

    model_config = ConfigDict(frozen=True)

    strategy: Strategy
    rounds: int = Field(ge=1, le=3)

    @property
    def arm(self) -> str:
        """Its name in the file and in the table."""
        return f"{self.strategy}/{self.rounds}"


class Reply(BaseModel):
    """One request and what came of it. `tokens`: completion tokens of all calls behind it. `error`: it failed; ask again."""

    model_config = ConfigDict(frozen=True)

    question: str
    arm: str
    index: int = 0
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    finish_reason: str | None = None
    trace_id: str | None = None
    debate: dict[str, Any] | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """There is one good reply for each question, arm and index."""
        return self.question, self.arm, self.index


class Replies:
    """The file and what it holds. Its first line says under which conditions the replies were given."""

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        """Raises SystemExit when the file was written under other conditions."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._good: dict[tuple[str, str, int], Reply] = {}
        lines = _whole_lines(path)
        if lines and json.loads(lines[0]) != conditions:
            raise SystemExit(
                f"{path} holds replies given under other conditions ({lines[0]}); name another --replies file, or delete this one"
            )
        for line in lines[1:]:
            self._keep(Reply.model_validate_json(line))
        self._file = path.open("a")
        if not lines:
            self._write(json.dumps(conditions))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def get(self, question: str, arm: str, index: int = 0) -> Reply | None:
        """The good reply, if it was given already."""
        return self._good.get((question, arm, index))

    def samples(self, question: str) -> list[Reply]:
        """The samples of a question, from the first on, up to the first that is missing."""
        found: list[Reply] = []
        while (reply := self.get(question, SAMPLE, len(found))) is not None:
            found.append(reply)
        return found

    def add(self, reply: Reply) -> None:
        """Keep a reply, in memory if it is good and in the file in any case."""
        self._keep(reply)
        self._write(reply.model_dump_json(exclude_defaults=True))

    def _keep(self, reply: Reply) -> None:
        if reply.error is None:
            self._good[reply.key] = reply

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()


def _whole_lines(path: Path) -> list[str]:
    """The lines of the file; a last one that an interruption cut short is removed from it."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return whole.decode().split("\n")[:-1]  # a reply may hold U+2028, at which splitlines would cut
