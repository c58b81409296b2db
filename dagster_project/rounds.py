"""The rounds of one debate on this worker: what was said so far, who still speaks, and when a round must end."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic import BaseModel, ConfigDict

from dagster_project.debate import DebateSpec, Draft, RoundEnd, Verdict, allowance, total_usage
from serve_app.events import Usage


class Held(BaseModel):
    """The rounds that are over, each with its drafts in the order of the specification; how the last one ended."""

    model_config = ConfigDict(frozen=True)

    rounds: tuple[tuple[Draft, ...], ...] = ()
    end: RoundEnd | None = None


class Decision(BaseModel):
    """All that was said, and who won."""

    model_config = ConfigDict(frozen=True)

    rounds: tuple[tuple[Draft, ...], ...]
    verdict: Verdict


class Speaking(BaseModel):
    """A durable mark: from here on the answer itself may have been streamed, and cannot be taken back."""

    model_config = ConfigDict(frozen=True)

    take: int


def spent_on(rounds: Sequence[Sequence[Draft]]) -> Usage:
    """What these drafts took, all together."""
    return total_usage([draft.usage for drafts in rounds for draft in drafts])


class RoundOver(Exception):
    """The round has ended for somebody who still spoke."""


class Round:
    """One round while it is held. Lives on the worker's loop.

    It ends for those who still speak `straggler_s` after enough debaters gave an answer, and at `ends_at` (Unix seconds)
    in any case: what they had said is kept as a cut draft.
    """

    def __init__(self, spec: DebateSpec, number: int, *, ends_at: float, spent: Usage) -> None:
        self.number = number
        self.max_tokens = allowance(spec, spent=spent, calls=len(spec.tasks))
        self.step = "argue" if number == 1 else f"round_{number}"
        self._spec = spec
        self._ends_at = ends_at
        self._speaking: set[asyncio.Timeout] = set()
        self._answers = 0
        self._over = 0

    @property
    def seconds_left(self) -> float:
        return self._ends_at - time.time()

    def over(self, draft: Draft) -> int:
        """One more debater is through; how many that makes. The one that makes it enough starts the stragglers' time."""
        self._over += 1
        self._answers += draft.is_candidate
        if self._answers == self._spec.enough and self._over < len(self._spec.tasks):
            self._ends_at = min(self._ends_at, time.time() + self._spec.straggler_s)
            for timeout in self._speaking:
                if not timeout.expired():  # who is being cut just now cannot be given another end
                    timeout.reschedule(self._loop_end())
        return self._over

    @asynccontextmanager
    async def floor(self) -> AsyncIterator[None]:
        """Speak in this block: it is cancelled when the round ends, and raises RoundOver then."""
        timeout = asyncio.timeout_at(self._loop_end())
        self._speaking.add(timeout)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise RoundOver from None
        finally:
            self._speaking.discard(timeout)

    def _loop_end(self) -> float:
        return asyncio.get_running_loop().time() + self.seconds_left
