"""What is asked, and when. Pure; the same seed gives the same questions at the same moments."""

from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_WORDS: Final = (
    "tell me in plain words how a small team could measure one thing at a time and what would change if "
    "the second result did not agree with the first while all other parts of the work stayed as they were before"
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one kind. Lengths in tokens; the prompt's is aimed at, one word being about one token."""

    model: str
    prompt_tokens: int = 64
    output_tokens: int = 64
    seed: int = 0

    def body(self, number: int) -> dict[str, Any]:
        """The chat request `number`: a prompt of its own, an answer of fixed length, the cache bypassed."""
        random = Random(f"{self.seed}|{number}")  # noqa: S311 - text, not secrets
        words = [f"{random.getrandbits(48):x}:", *random.choices(_WORDS.split(), k=max(1, self.prompt_tokens - 1))]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "x_cache": {"mode": "bypass"},
        }


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one step of a sweep lasts: until enough requests have come, between the two bounds, seconds.

    The first `warm_share` of each step is not counted.
    """

    requests: int = 150
    least_s: float = 8.0
    most_s: float = 30.0
    warm_share: float = 0.25

    def seconds(self, rate: float) -> float:
        """Length of a step at `rate` requests/s, warm-up included."""
        return min(max(self.requests / rate, self.least_s), self.most_s)

    def window(self, rate: float) -> tuple[float, float]:
        """Begin and end of what is counted, seconds from the step's start."""
        seconds = self.seconds(rate)
        return seconds * self.warm_share, seconds


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Moments of a Poisson process, seconds from the start, rising.

    Stretched so that exactly rate x seconds requests come: the offered load is the one that was asked for. At another
    rate the same seed gives the same pattern, faster or slower, so that steps of a sweep differ by their load alone.
    """
    count = max(1, round(rate * seconds))
    gaps = np.random.default_rng(seed).exponential(size=count + 1)
    moments = np.cumsum(gaps)
    stretched: NDArray[np.float64] = moments[:-1] * (seconds / moments[-1])
    return stretched
