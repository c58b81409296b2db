"""How many warm workers: Ray Serve's controller asks the policy here about ten times a second.

The policy reads nothing itself. Each worker counts the queue over the connection that it has anyway
(`Worker.record_autoscaling_stats`), Serve carries the counts to the controller, and the policy works on what it has
at hand: it cannot block the controller, and no password goes there, where Serve would log it.

Serve pickles this module by value: the policy must get along without this module's imports of heavy parts.
"""

import math
import warnings
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from serve_app.settings import Settings

BACKLOG: Final = "backlog"  # the name under which workers report
_POLICY: Final = "dagster_project.scaling:QueueLagPolicy"
_REPORT_S: Final = 1.0
_WINDOW_S: Final = 10.0  # at most; a worker goes only if it was not needed at the highest count in this time
_STALE_S: Final = 15.0
_UPSCALE_S: Final = 2.0  # a burst that the workers are through with by then starts no process


class Reading(NamedTuple):
    """Runs that wait or are being executed, counted by one worker at one time (seconds since the epoch)."""

    at: float
    runs: float


def workers_wanted(readings: Iterable[Reading], *, now: float, runs_per_worker: int, current: int) -> int:
    """Enough for the freshest reading; fewer than `current` only if they were enough for every reading of the window.

    Without a fresh reading it is `current`: an unknown queue is not an empty one.
    """
    fresh = [reading for reading in readings if now - reading.at <= _STALE_S]
    if not fresh:
        return current
    needed = math.ceil(max(fresh).runs / runs_per_worker)
    if needed >= current:
        return needed
    peak = max(reading.runs for reading in fresh)
    return min(current, math.ceil(peak / runs_per_worker))


class QueueLagPolicy:
    """Serve's policy: the bounds and the delays are Serve's own, from `autoscaling_config`."""

    def __init__(self, runs_per_worker: int) -> None:
        self._runs_per_worker = runs_per_worker

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """`context` is Serve's AutoscalingContext. Returns the number of workers, and nothing to remember."""
        reported = (context.raw_metrics or {}).get(BACKLOG, {})
        readings = [Reading(point.timestamp, point.value) for series in reported.values() for point in series]
        wanted = workers_wanted(
            readings, now=context.current_time, runs_per_worker=self._runs_per_worker, current=context.target_num_replicas
        )
        return wanted, {}


def number_of_workers(settings: Settings) -> dict[str, Any]:
    """The arguments of `serve.deployment` that say how many: a fixed number, or bounds and the policy.

    With bus=core nothing waits anywhere, so there is nothing to go by: `workers_min` run.
    """
    if settings.workers is not None:
        return {"num_replicas": settings.workers}
    if settings.bus == "core" or settings.workers_min == settings.workers_max:
        return {"num_replicas": settings.workers_min}
    return {"autoscaling_config": _autoscaling(settings)}


def _autoscaling(settings: Settings) -> Any:
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    with warnings.catch_warnings():
        # Ray would have metrics_interval_s in the environment of every node, for all deployments at once.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=settings.workers_min,
            max_replicas=settings.workers_max,
            metrics_interval_s=_REPORT_S,
            look_back_period_s=max(2 * _REPORT_S, min(_WINDOW_S, settings.worker_idle_s)),
            upscale_delay_s=_UPSCALE_S,
            downscale_delay_s=settings.worker_idle_s,
            policy=AutoscalingPolicy(policy_function=_POLICY, policy_kwargs={"runs_per_worker": settings.runs_per_worker}),
        )
