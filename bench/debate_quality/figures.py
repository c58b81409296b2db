"""The statistics of the comparison. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

_RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One method against another on the same questions. `only_first`: questions that only the first one got right."""

    questions: int
    difference: float
    interval: Interval
    only_first: int
    only_second: int
    p_value: float


def wilson(right: int, of: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share. Raises ValueError when there is nothing to share."""
    if not 0 <= right <= of or of == 0:
        raise ValueError(f"{right} of {of} is no share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = right / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value: how often a fair coin splits the questions on which two methods differ at least so unevenly."""
    differing = only_first + only_second
    fewer = min(only_first, only_second)
    tail = sum(math.comb(differing, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**differing))


def bootstrap(first: Sequence[bool], second: Sequence[bool], seed: int, confidence: float = 0.95) -> Interval:
    """Percentile interval of the difference of two accuracies; whole questions are drawn again, so pairs stay pairs."""
    paired = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(paired), size=(_RESAMPLES, len(paired)))
    low, high = np.quantile(paired[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def compare(first: Sequence[bool], second: Sequence[bool], seed: int) -> Difference:
    """Which method is better on the same questions, in the same order. Raises ValueError for lists that do not pair."""
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} answers make no pairs")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return Difference(
        questions=len(first),
        difference=(only_first - only_second) / len(first),
        interval=bootstrap(first, second, seed),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )
