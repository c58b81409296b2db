"""What follows for the knobs: simulated systems tried until one carries the load with room to spare. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from serve_app.capacity.figures import Figures, summarise
from serve_app.capacity.knee import Slo, find_knee
from serve_app.capacity.replica_model import ReplicaModel
from serve_app.capacity.simulation import Simulation, System
from serve_app.capacity.workload import Pace, Workload, arrivals

# Long enough that a percentile settles.
_LONG: Final = Pace(requests=1200, least_s=20, most_s=3600, warm_share=0.2)
_CLOSE: Final = 1.03
_WORTH: Final = 0.98  # a knob that brings less than the rest of this is not worth turning
_MOST_REPLICAS: Final = 256
# A worker that is full makes the next debate wait, so it is not planned full.
_WORKER_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Debates:
    """Debates that arrive beside plain requests: their rate per second, and what one asks of replicas and workers."""

    rate: float
    drafts: int
    rounds: int
    closing_calls: int
    runs_per_worker: int

    @property
    def calls(self) -> int:
        """Requests to replicas that one debate makes."""
        return self.drafts * self.rounds + self.closing_calls


@dataclass(frozen=True, slots=True)
class Advice:
    """Recommended knobs. Rates are requests/s: `rate` is to be served, `knee` is what the recommended system carries."""

    rate: float
    replicas: int
    max_ongoing_requests: int
    target_ongoing_requests: int
    workers: int
    knee: float
    knee_each: float


def predict(system: System, workload: Workload, rate: float, pace: Pace) -> Figures:
    """One step of a sweep, simulated: the arrivals are those of the measurement with the same seed."""
    seconds = pace.seconds(rate)
    window = pace.window(rate)
    simulation = Simulation(
        system,
        arrivals(rate, seconds, workload.seed).tolist(),
        output_tokens=workload.output_tokens,
        prompt_tokens=system.replica.prompt_tokens or workload.prompt_tokens,
        seed=workload.seed,
        window=window,
    )
    timings, gaps = simulation.run()
    return summarise(rate, timings, gaps, window)


def long_run_knee(system: System, workload: Workload, slo: Slo) -> float:
    """The knee of a simulated system in requests/s over long steps; 0 when not even a single request meets the objective."""
    ceiling = system.ceiling(workload.prompt_tokens, workload.output_tokens)
    if not slo.given:
        loads = [ceiling * share for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
        return find_knee([predict(system, workload, load, _LONG) for load in loads], slo) or 0.0
    low, high = 0.0, ceiling * 1.1
    if slo.strain(predict(system, workload, ceiling * 0.01, _LONG)) > 1:
        return 0.0
    while low < high * 0.02 or high > low * _CLOSE:
        middle = (low + high) / 2
        if slo.strain(predict(system, workload, middle, _LONG)) <= 1:
            low = middle
        else:
            high = middle
        if high < ceiling * 0.01:
            break
    return low


def advise(
    system: System, workload: Workload, slo: Slo, *, rate: float | None, headroom: float, debates: Debates | None
) -> Advice:
    """Knobs for `rate` requests/s of this workload (None: what the system's present replicas carry).

    At the recommended number of replicas the knee times `headroom` (0..1) is at least the rate, the calls that debates
    make included. Raises ValueError when no number of replicas can meet the objective.
    """

    @lru_cache
    def knee(replicas: int, max_ongoing: int) -> float:
        return long_run_knee(replace(system, replicas=replicas, max_ongoing=max_ongoing), workload, slo)

    places = _places(system, knee, slo)
    each = knee(1, places)
    if each <= 0:
        first_s, step_s = system.replica.first(1, workload.prompt_tokens), system.replica.step(1)
        raise ValueError(f"a lone request misses the objective: first token after {first_s:.3g} s, then one every {step_s:.3g} s")
    wanted = rate if rate is not None else knee(system.replicas, places) * headroom
    calls = wanted + (debates.rate * debates.calls if debates else 0.0)
    replicas = max(1, math.ceil(calls / (each * headroom) - 1e-6))
    # Many replicas share their queue and carry a little more than so many single ones.
    while replicas > 1 and knee(replicas - 1, places) * headroom >= calls:
        replicas -= 1
    while replicas < _MOST_REPLICAS and knee(replicas, places) * headroom < calls * 0.999:
        replicas += 1
    chosen = replace(system, replicas=replicas, max_ongoing=places)
    busy = predict(chosen, workload, knee(replicas, places) * headroom, _LONG)
    ongoing = (busy.waiting + busy.running) / replicas
    return Advice(
        rate=wanted,
        replicas=replicas,
        max_ongoing_requests=places,
        target_ongoing_requests=max(1, min(math.floor(ongoing), places - 1)),
        workers=_workers(debates, system.replica, workload, max(1, round(ongoing))),
        knee=knee(replicas, places),
        knee_each=each,
    )


def _places(system: System, knee: Callable[[int, int], float], slo: Slo) -> int:
    """The fewest places of a replica that carry nearly as much as the best number of them."""
    candidates = _candidates(system, slo)
    best = max(knee(1, places) for places in candidates)
    return next(places for places in candidates if knee(1, places) >= best * _WORTH)


def _candidates(system: System, slo: Slo) -> Sequence[int]:
    """Numbers of places to try: powers of two and their middles, up to the first at which tokens alone come too slowly."""
    limit = slo.itl_p95 if slo.itl_p95 is not None else math.inf
    found = [1]
    for places in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512):
        found.append(places)
        if system.replica.step(places) > limit or places >= 2 * system.max_ongoing:
            break
    return found


def _workers(debates: Debates | None, replica: ReplicaModel, workload: Workload, ongoing: int) -> int:
    """Warm workers by Little's law: debates a second times seconds a debate, over the runs that a worker holds."""
    if debates is None or debates.rate <= 0:
        return 1
    call_s = replica.first(ongoing, workload.prompt_tokens) + workload.output_tokens * replica.step(ongoing)
    # Drafts of a round run side by side, rounds and the closing calls' pair one after another.
    run_s = call_s * (debates.rounds + (1 if debates.closing_calls else 0))
    return max(1, math.ceil(debates.rate * run_s / (debates.runs_per_worker * _WORKER_SHARE)))
