"""One capacity study: fit a replica, predict the sweep, measure it, advise. READ FIRST."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from serve_app.capacity.advice import Advice, Debates, advise, predict
from serve_app.capacity.cluster_metrics import ClusterMetrics
from serve_app.capacity.figures import Figures
from serve_app.capacity.knee import Slo, find_knee
from serve_app.capacity.load import Load
from serve_app.capacity.replica_model import ReplicaModel, fit
from serve_app.capacity.simulation import System
from serve_app.capacity.sweep import Step, along, sweep
from serve_app.capacity.workload import Pace, Workload

# Sent later than this, the load generator was the bottleneck and the figures are its own.
LATE_S: Final = 0.05
_LONGER_PROMPT: Final = 4
_CURVE: Final = 24  # points of a predicted curve
_COUNTS: Final = tuple(2**power for power in range(10))
_GUESS: Final = 0.8  # the knee is looked for around this part of the ceiling

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be found out. `loads` (requests/s) replaces the search for the knee, `rate` is the load to plan for."""

    workload: Workload
    slo: Slo
    pace: Pace
    level_s: float = 8.0
    most_concurrent: int = 64
    loads: tuple[float, ...] = ()
    rate: float | None = None
    headroom: float = 0.8
    debates: Debates | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found out. `beside` is the prediction at exactly the measured loads, `curve` at many; knees in requests/s."""

    question: Question
    system: System
    curve: Sequence[Figures]
    measured: Sequence[Figures]
    beside: Sequence[Figures]
    predicted_knee: float | None
    measured_knee: float | None
    advice: Advice | None
    warnings: Sequence[str]


async def measure_replica(load: Load, question: Question, replicas: int, max_ongoing: int, tell: Tell) -> ReplicaModel:
    """Fit a replica from a closed loop at 1, 2, 4, … requests on each, up to 3/4 of the places.

    Raises ValueError when nothing was answered.
    """
    most = min(max_ongoing, question.most_concurrent)
    # Below the last places: with all of them taken the router's pauses would be measured, not the replica.
    top = max(1, most * 3 // 4)
    counts = sorted({top, *(count for count in _COUNTS if count < top)})
    levels = []
    for count in counts:
        tell(f"fitting: {count} at a time on each replica")
        levels.append(await load.level(count * replicas, replicas, question.level_s))
    tell("fitting: a longer prompt")
    workload = question.workload
    long = replace(workload, prompt_tokens=workload.prompt_tokens * _LONGER_PROMPT, output_tokens=2)
    return fit(levels, long_prompt=await load.level(replicas, replicas, question.level_s / 4, workload=long))


async def study(question: Question, system: System, load: Load | None, metrics: ClusterMetrics | None, tell: Tell) -> Findings:
    """Predict, then measure if there is a `load`; `system` brings the fitted replica."""
    slo, pace, workload = question.slo, question.pace, question.workload

    async def simulated(rate: float) -> Figures:
        return await asyncio.to_thread(predict, system, workload, rate, pace)

    ceiling = system.ceiling(workload.prompt_tokens, workload.output_tokens)
    tell("predicting")
    predicted = await _sweep(simulated, question, ceiling * _GUESS)
    predicted_knee = find_knee(predicted, slo)
    measured: list[Figures] = []
    if load is not None:
        measured = await _sweep(_measuring(load, pace, metrics, tell), question, predicted_knee or ceiling * _GUESS)
    top = max(step.offered for step in (*predicted, *measured))
    curve = [await simulated(top * (number + 1) / _CURVE) for number in range(_CURVE)]
    tell("trying what to advise")
    advice, warnings = None, _warnings(system, measured, load)
    try:
        advice = await asyncio.to_thread(
            advise, system, workload, slo, rate=question.rate, headroom=question.headroom, debates=question.debates
        )
    except ValueError as error:
        warnings.append(f"no advice: {error}")
    return Findings(
        question=question,
        system=system,
        curve=curve if measured else sorted({*predicted, *curve}, key=lambda step: step.offered),
        measured=sorted(measured, key=lambda step: step.offered),
        beside=[await simulated(step.offered) for step in sorted(measured or predicted, key=lambda step: step.offered)],
        predicted_knee=predicted_knee,
        measured_knee=find_knee(measured, slo),
        advice=advice,
        warnings=warnings,
    )


async def _sweep(step: Step, question: Question, guess: float) -> list[Figures]:
    steps = along(step, question.loads) if question.loads else sweep(step, question.slo, guess)
    return [figures async for figures in steps]


def _measuring(load: Load, pace: Pace, metrics: ClusterMetrics | None, tell: Tell) -> Step:
    async def measured(rate: float) -> Figures:
        tell(f"measuring {rate:.3g} requests/s for {pace.seconds(rate):.0f} s")
        async with asyncio.TaskGroup() as group:
            step = group.create_task(load.step(rate, pace))
            queue = group.create_task(metrics.mean_queued(*pace.window(rate))) if metrics else None
        return replace(step.result(), queued=queue.result() if queue else None)

    return measured


def _warnings(system: System, measured: Sequence[Figures], load: Load | None) -> list[str]:
    found = []
    if not system.replica.straight:
        found.append(
            f"at {system.replica.worst_level:.1f} requests on a replica the measured time between tokens is "
            f"{system.replica.worst_miss:.0%} off the fitted line: trust the measurement more than the prediction"
        )
    late = max((step.late_p95 for step in measured), default=0.0)
    if late > LATE_S:
        found.append(f"requests were sent up to {late:.2f} s late (p95): the load generator needs more CPU than it got")
    if load is not None:
        found += [f"{count} requests failed: {error}" for error, count in load.errors.items()]
    return found
