"""How many workers the queue asks for: the arithmetic, and what Serve is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from dagster_project.scaling import BACKLOG, QueueLagPolicy, Reading, number_of_workers, workers_wanted
from serve_app.settings import Settings

NOW = 1_000_000.0


def wanted(*readings: tuple[float, float], current: int = 1, runs_per_worker: int = 4) -> int:
    """`readings`: seconds ago, runs."""
    made = [Reading(NOW - ago, runs) for ago, runs in readings]
    return workers_wanted(made, now=NOW, runs_per_worker=runs_per_worker, current=current)


@pytest.mark.parametrize(
    ("runs", "workers"),
    [(0, 0), (1, 1), (4, 1), (5, 2), (37, 10)],
)
def test_enough_for_all_runs(runs: int, workers: int) -> None:
    assert wanted((0, runs), current=0) == workers


def test_a_peak_that_is_over_starts_nobody() -> None:
    assert wanted((5, 100), (0, 8), current=1) == 2


def test_nobody_goes_who_was_needed_a_moment_ago() -> None:
    assert wanted((8, 12), (4, 9), (0, 0), current=3) == 3
    assert wanted((8, 5), (4, 2), (0, 0), current=3) == 2
    assert wanted((8, 100), (0, 0), current=3) == 3, "a peak never adds workers afterwards"


def test_the_freshest_reading_counts_whoever_made_it() -> None:
    assert wanted((0.1, 20), (0.9, 4), current=1) == 5
    assert wanted((0.9, 4), (0.1, 20), current=1) == 5


@pytest.mark.parametrize("readings", [(), ((16.0, 0.0),), ((60.0, 100.0), (20.0, 0.0))])
def test_an_unknown_queue_is_not_an_empty_one(readings: tuple[tuple[float, float], ...]) -> None:
    assert wanted(*readings, current=3) == 3


def context(metrics: dict[str, Any] | None) -> Any:
    return SimpleNamespace(raw_metrics=metrics, current_time=NOW, target_num_replicas=3)


def test_the_policy_reads_what_the_workers_reported() -> None:
    policy = QueueLagPolicy(runs_per_worker=2)
    series = {"first": [SimpleNamespace(timestamp=NOW - 2, value=9)], "second": [SimpleNamespace(timestamp=NOW - 1, value=11)]}
    assert policy(context({BACKLOG: series})) == (6, {})
    assert policy(context({})) == (3, {})
    assert policy(context(None)) == (3, {})


def settings(**changes: Any) -> Settings:
    return Settings(config="simulated", **{"workers": None, "workers_min": 1, "workers_max": 4, **changes})


def test_serve_is_told_bounds_delays_and_no_secret() -> None:
    made = number_of_workers(settings(nats_url="nats://user:hidden@host", runs_per_worker=3, worker_idle_s=77))
    config = made.pop("autoscaling_config")
    assert made == {}
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert config.metrics_interval_s < 5, "without it a report is ten seconds old"
    assert config.upscale_delay_s < 5 < config.downscale_delay_s == 77
    assert config.policy.policy_kwargs == {"runs_per_worker": 3}
    assert b"hidden" not in config.policy.get_serialized_policy_def()
    assert isinstance(config.policy.get_policy()(**config.policy.policy_kwargs)(context({})), tuple)


@pytest.mark.parametrize(
    ("changes", "number"),
    [({"workers": 3}, 3), ({"workers_min": 2, "workers_max": 2}, 2), ({"bus": "core", "workers_min": 2}, 2)],
)
def test_a_fixed_number(changes: dict[str, Any], number: int) -> None:
    assert number_of_workers(settings(**changes)) == {"num_replicas": number}


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workers_max \(1\) is below workers_min \(2\)"):
        settings(workers_min=2, workers_max=1)
