"""Where the load becomes too much. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from serve_app.capacity.figures import Figures

# More failed requests than this break every objective.
FAILED_SHARE: Final = 0.01
# Without an objective: what is delivered may fall this far behind what is offered.
_KEPT_UP: Final = 0.9


@dataclass(frozen=True, slots=True)
class Slo:
    """A service level objective: 95th percentiles in seconds; None leaves a side open."""

    ttft_p95: float | None = None
    itl_p95: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is any objective."""
        return self.ttft_p95 is not None or self.itl_p95 is not None

    def strain(self, figures: Figures) -> float:
        """How near a step came to a limit: 1 is the limit, above it the objective is missed."""
        strains = [figures.failed_share / FAILED_SHARE]
        if self.ttft_p95 is not None:
            strains.append(figures.ttft_p95 / self.ttft_p95)
        if self.itl_p95 is not None:
            strains.append(figures.itl_p95 / self.itl_p95)
        if not self.given:
            strains.append(_KEPT_UP * figures.offered / figures.throughput if figures.throughput else math.inf)
        return max(strains)


def find_knee(steps: Sequence[Figures], slo: Slo) -> float | None:
    """The knee of a sweep in requests/s, or None when the sweep does not show it.

    With an objective: the load at which it stops to hold, between the last step that held and the first that did not
    (straight on a log scale of the strain). Without: the load with the greatest power, throughput over mean response
    time (Kleinrock 1979).
    """
    ordered = sorted(steps, key=lambda step: step.offered)
    if not slo.given:
        powers = [(step.throughput / step.mean_s, step.offered) for step in ordered if step.mean_s > 0]
        return max(powers)[1] if powers else None
    bracket = bracket_of(ordered, slo)
    if bracket is None:
        return None
    below, above = bracket
    low, high = slo.strain(below), slo.strain(above)
    if low <= 0 or math.isinf(high):
        return below.offered
    share = math.log(1 / low) / math.log(high / low)
    return below.offered + share * (above.offered - below.offered)


def bracket_of(ordered: Sequence[Figures], slo: Slo) -> tuple[Figures, Figures] | None:
    """The last step that held and the first that did not, by load; None when one of them is missing."""
    for below, above in pairwise(ordered):
        if slo.strain(below) <= 1 < slo.strain(above):
            return below, above
    return None
