"""Which loads to try, until the knee is known. The same for a measurement and for a prediction."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from serve_app.capacity.figures import Figures
from serve_app.capacity.knee import Slo, bracket_of

_SHARES: Final = (0.4, 0.7, 0.85, 1.0, 1.15, 1.3)
_MORE: Final = 1.5  # the guess was low
_BEYOND: Final = 1.25
# Two loads this near to each other around the knee say enough.
_NEAR: Final = 1.1

Step = Callable[[float], Awaitable[Figures]]


async def sweep(step: Step, slo: Slo, guess: float, *, most: int = 12) -> AsyncIterator[Figures]:
    """Try loads around `guess` (requests/s), upwards until the objective is missed, then closer: `most` steps at most."""
    seen: list[Figures] = []
    while (load := _next(seen, slo, guess)) is not None and len(seen) < most:
        seen.append(await step(load))
        yield seen[-1]


async def along(step: Step, loads: Sequence[float]) -> AsyncIterator[Figures]:
    """Try exactly these loads."""
    for load in loads:
        yield await step(load)


def _next(seen: Sequence[Figures], slo: Slo, guess: float) -> float | None:
    """The next load, or None when there is nothing more to learn."""
    ordered = sorted(seen, key=lambda step: step.offered)
    missed = [step for step in ordered if slo.strain(step) > 1]
    if not missed:
        later = [guess * share for share in _SHARES if not ordered or guess * share > ordered[-1].offered * 1.001]
        return later[0] if later else ordered[-1].offered * _MORE
    if len(missed) == len(ordered):
        return ordered[0].offered / 2
    bracket = bracket_of(ordered, slo)
    if bracket is None:  # held only above a step that did not
        return ordered[0].offered / 2
    below, above = bracket
    if above.offered > below.offered * _NEAR:
        return math.sqrt(below.offered * above.offered)
    # One step beyond, so that the curves show what the knee leads to.
    return above.offered * _BEYOND if above is ordered[-1] else None
