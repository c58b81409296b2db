"""What one step of a sweep showed. The same arithmetic for what was measured and for what was predicted. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, seconds from the step's start. `arrived` is when it should have been sent, whenever it was.

    `first` is None when no token came, `ended` when it ended, in whichever way.
    """

    arrived: float
    first: float | None
    ended: float
    tokens: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Gaps:
    """Times between tokens in seconds, each with the number of times it was seen."""

    seconds: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """One load and what came of it. Rates are per second, times are seconds.

    `waiting` and `running` are mean numbers of requests before and after their first token, as the client sees them.
    `queued` is what the cluster's own metrics say of requests that wait for a free replica, None where they are not read.
    `late_p95` is how late the load generator sent: it should be next to nothing.
    """

    offered: float
    requests: int
    failed_share: float
    throughput: float
    tokens_per_s: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p95: float
    waiting: float
    running: float
    mean_s: float
    late_p95: float = 0.0
    queued: float | None = None


def quantile(values: Sequence[float] | NDArray[np.float64], share: float) -> float:
    """A plain quantile; 0 of nothing."""
    return float(np.quantile(values, share)) if len(values) else 0.0


def weighted_quantile(gaps: Gaps, share: float) -> float:
    """The smallest value up to which `share` of the weight lies; 0 of nothing."""
    if not len(gaps.seconds):
        return 0.0
    order = np.argsort(gaps.seconds)
    heaped = np.cumsum(gaps.weights[order])
    return float(gaps.seconds[order][min(np.searchsorted(heaped, share * heaped[-1]), len(order) - 1)])


def summarise(
    offered: float,
    timings: Iterable[Timing],
    gaps: Gaps,
    window: tuple[float, float],
    *,
    late_p95: float = 0.0,
    queued: float | None = None,
) -> Figures:
    """Figures of the time from window[0] to window[1]: latencies of requests that arrived in it, rates of what ended in it."""
    begin, end = window
    known = list(timings)
    mine = [timing for timing in known if begin <= timing.arrived < end]
    answered = [timing.first - timing.arrived for timing in mine if timing.first is not None]
    done = [timing for timing in known if timing.ok and begin <= timing.ended < end]
    good = [timing for timing in mine if timing.ok]
    length = end - begin
    return Figures(
        offered=offered,
        requests=len(mine),
        failed_share=1 - len(good) / len(mine) if mine else 0.0,
        throughput=len(done) / length,
        tokens_per_s=sum(timing.tokens for timing in done) / length,
        ttft_p50=quantile(answered, 0.5),
        ttft_p95=quantile(answered, 0.95),
        itl_p50=weighted_quantile(gaps, 0.5),
        itl_p95=weighted_quantile(gaps, 0.95),
        waiting=sum(_overlap(t.arrived, t.ended if t.first is None else t.first, window) for t in known) / length,
        running=sum(_overlap(t.first, t.ended, window) for t in known if t.first is not None) / length,
        mean_s=float(np.mean([timing.ended - timing.arrived for timing in good])) if good else 0.0,
        late_p95=late_p95,
        queued=queued,
    )


def _overlap(begin: float, end: float, window: tuple[float, float]) -> float:
    return max(0.0, min(end, window[1]) - max(begin, window[0]))
