"""A replica as a few numbers, fitted from a short measurement. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve_app.capacity.figures import quantile

_SHARES: Final = tuple(np.linspace(0.01, 0.99, 50).tolist())
# A straight line that misses a measured level by more than this is not to be trusted.
_STRAIGHT: Final = 0.15


@dataclass(frozen=True, slots=True)
class Level:
    """What one concurrency showed: `concurrency` requests on each replica, on average. Times are seconds.

    `first` holds the times to first token, `steps` the mean time between tokens of each answer, `offsets` how far each
    single gap was off its own answer's mean.
    """

    concurrency: float
    first: Sequence[float]
    steps: Sequence[float]
    offsets: Sequence[float]
    prompt_tokens: float


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """Time to first token and time between tokens of a replica that works on n requests. Seconds.

    first(n) = first_s + first_each_s * (n - 1) + prefill_token_s * (prompt tokens beyond those of the measurement)
    step(n)  = step_s + step_each_s * (n - 1)

    Both scatter, in evenly spaced quantiles: `first_spread` is measured by mean, so 1 is the mean; `step_offsets` are
    seconds around the mean gap, because what disturbs single tokens (prefills of others, the machine) does not slow
    down with n.
    """

    first_s: float
    first_each_s: float
    step_s: float
    step_each_s: float
    first_spread: tuple[float, ...] = (1.0,)
    step_offsets: tuple[float, ...] = (0.0,)
    prompt_tokens: float = 0.0
    prefill_token_s: float = 0.0
    # Largest relative distance of a measured level from the line of steps, and the level's concurrency.
    worst_miss: float = 0.0
    worst_level: float = 0.0

    def first(self, running: int, prompt_tokens: float) -> float:
        """Mean time to first token of a request that is one of `running`."""
        more = self.prefill_token_s * (prompt_tokens - self.prompt_tokens) if self.prompt_tokens else 0.0
        return max(0.0, self.first_s + self.first_each_s * (running - 1) + more)

    def step(self, running: int) -> float:
        """Mean time between two tokens of one answer while the replica works on `running`."""
        return self.step_s + self.step_each_s * (running - 1)

    def serves(self, running: int, prompt_tokens: float, output_tokens: int) -> float:
        """Requests per second of a replica that always works on `running` requests."""
        held = self.first(running, prompt_tokens) + (output_tokens - 1) * self.step(running)
        return running / max(held, 1e-6)

    @property
    def straight(self) -> bool:
        """Whether the measured levels lie on the lines."""
        return self.worst_miss <= _STRAIGHT

    def as_json(self) -> dict[str, Any]:
        """Plain values, read back by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ReplicaModel":
        """Raises ValueError that names what is missing or unknown."""
        try:
            spreads = {name: tuple(map(float, values[name])) for name in ("first_spread", "step_offsets")}
            return cls(**{**values, **spreads})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a replica's model: {error}") from error


def fit(levels: Sequence[Level], *, long_prompt: Level | None = None) -> ReplicaModel:
    """The model nearest to the measured levels, each weighed by its relative distance.

    `long_prompt`: a level of the same concurrency as the first one with longer prompts; it gives the cost of a prompt's
    token. Raises ValueError without a level that has answers of at least two tokens.
    """
    known = [level for level in levels if level.first and level.steps]
    if not known:
        raise ValueError("nothing to fit: no answer of two tokens or more came while measuring; see the errors above")
    counts = np.array([level.concurrency for level in known], dtype=float)
    firsts = np.array([float(np.mean(level.first)) for level in known])
    steps = np.array([float(np.mean(level.steps)) for level in known])
    first_s, first_each_s = _line(counts - 1, firsts)
    step_s, step_each_s = _line(counts - 1, steps)
    misses = np.abs(step_s + step_each_s * (counts - 1) - steps) / steps
    worst = int(np.argmax(misses))
    return ReplicaModel(
        first_s=first_s,
        first_each_s=first_each_s,
        step_s=step_s,
        step_each_s=step_each_s,
        first_spread=_spread([value / mean for level, mean in zip(known, firsts, strict=True) for value in level.first]),
        # Each level counts alike: the crowded ones have many more gaps.
        step_offsets=_spread([value for level in known for value in _spread(level.offsets)]),
        prompt_tokens=known[0].prompt_tokens,
        prefill_token_s=_prefill(known[0], long_prompt),
        worst_miss=float(misses[worst]),
        worst_level=known[worst].concurrency,
    )


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Intercept and slope of least relative squares, neither below 0."""
    weights = 1 / y
    if len(set(x.tolist())) > 1:
        slope, base = np.polyfit(x, y, 1, w=weights)
        if slope >= 0 and base >= 0:
            return float(base), float(slope)
        if base < 0:
            return 0.0, float(np.sum(weights**2 * x * y) / np.sum(weights**2 * x * x))
    return float(np.average(y, weights=weights**2)), 0.0


def _spread(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(quantile(values, share) for share in _SHARES)


def _prefill(short: Level, long: Level | None) -> float:
    if long is None or not long.first or long.prompt_tokens <= short.prompt_tokens:
        return 0.0
    more = float(np.median(long.first)) - float(np.median(short.first))
    return max(0.0, more / (long.prompt_tokens - short.prompt_tokens))
