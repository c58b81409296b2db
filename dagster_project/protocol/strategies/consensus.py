"""`consensus`: the answer that is nearest to all others by meaning."""

import math
from collections.abc import Sequence
from typing import Final

from dagster_project.protocol.strategies.criteria import fall_back, foregone
from dagster_project.protocol.terms import Draft, Verdict

_SAME: Final = 1e-6  # embeddings are float32


def consensus_verdict(standing: Sequence[Draft], vectors: Sequence[Sequence[float]]) -> Verdict:
    """The candidate with the highest mean cosine to the others. `vectors`: one per candidate; none: the embedder failed.

    Of equally near candidates (two are always equally near to each other) the next criterion picks: the majority of the
    short answers, if it is one of them, else the first. Raises ValueError when nobody stands or the counts differ.
    """
    settled = foregone(standing)
    if settled is not None:
        return settled
    if not vectors:
        return fall_back(standing, "embedder_failed")
    nearness = _mean_cosines(vectors)
    highest = max(nearness)
    nearest = [d for d, near in zip(standing, nearness, strict=True) if highest - near <= _SAME]
    if len(nearest) == 1:
        return Verdict(winner=nearest[0].task, stop_reason="nearest")
    by_majority = fall_back(standing, "tie")
    if by_majority.stop_reason == "tie_majority" and by_majority.winner in {d.task for d in nearest}:
        return by_majority
    return Verdict(winner=nearest[0].task, stop_reason="tie_first")


def _mean_cosines(vectors: Sequence[Sequence[float]]) -> list[float]:
    units = [_unit(vector) for vector in vectors]
    return [sum(_dot(one, other) for j, other in enumerate(units) if j != i) / (len(units) - 1) for i, one in enumerate(units)]


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(_dot(vector, vector))
    return [x / length for x in vector] if length else [0.0] * len(vector)


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(one, other, strict=True))
