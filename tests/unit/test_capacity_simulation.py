"""The simulation of replicas against what queueing theory knows in closed form."""

import math

import pytest

from serve_app.capacity.figures import Timing
from serve_app.capacity.replica_model import ReplicaModel
from serve_app.capacity.simulation import Router, Simulation, System
from serve_app.capacity.workload import arrivals

# Waiting requests look for a place nearly all the time, as the queues of theory do.
EAGER = Router(first_pause_s=0.02, pause_grows=1, longest_pause_s=0.02)


def simulated(system: System, rate: float, requests: int, *, tokens: int = 1) -> list[Timing]:
    seconds = requests / rate
    moments = arrivals(rate, seconds, seed=3).tolist()
    simulation = Simulation(system, moments, output_tokens=tokens, prompt_tokens=0, seed=3, window=(0, seconds))
    timings, _ = simulation.run()
    assert len(timings) == requests
    return timings


def mean_wait(timings: list[Timing], service_s: float) -> float:
    return sum(t.ended - t.arrived for t in timings) / len(timings) - service_s


def erlang_c(places: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; `load` in Erlang."""
    full = load**places / math.factorial(places) * places / (places - load)
    return full / (sum(load**k / math.factorial(k) for k in range(places)) + full)


@pytest.mark.parametrize("busy", [0.5, 0.7])
def test_one_place_and_constant_service_is_m_d_1(busy: float) -> None:
    replica = ReplicaModel(first_s=1.0, first_each_s=0, step_s=0.1, step_each_s=0)
    timings = simulated(System(replica, max_ongoing=1, router=EAGER), busy, 12_000)
    assert mean_wait(timings, 1.0) == pytest.approx(busy / (2 * (1 - busy)), rel=0.12)


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_three_places_and_exponential_service_is_m_m_3(busy: float) -> None:
    spread = tuple(-math.log(1 - (k + 0.5) / 500) for k in range(500))
    replica = ReplicaModel(first_s=1.0, first_each_s=0, step_s=0.1, step_each_s=0, first_spread=spread)
    timings = simulated(System(replica, max_ongoing=3, router=EAGER), 3 * busy, 15_000)
    expected = erlang_c(3, 3 * busy) / (3 - 3 * busy)
    assert mean_wait(timings, 1.0) == pytest.approx(expected, rel=0.15, abs=0.02)


@pytest.mark.parametrize("busy", [0.4, 0.7])
def test_a_replica_that_slows_in_proportion_shares_its_processor(busy: float) -> None:
    """M/G/1 with processor sharing: the mean time in the system is service / (1 - load), whatever the service's law."""
    replica = ReplicaModel(first_s=0, first_each_s=0, step_s=0.1, step_each_s=0.1)
    timings = simulated(System(replica, max_ongoing=500), busy, 12_000, tokens=11)
    mean_s = sum(t.ended - t.arrived for t in timings) / len(timings)
    assert mean_s == pytest.approx(1 / (1 - busy), rel=0.12)


def test_every_token_of_every_answer_is_counted_once() -> None:
    replica = ReplicaModel(first_s=0.1, first_each_s=0.01, step_s=0.02, step_each_s=0.005)
    system = System(replica, replicas=3, max_ongoing=4)
    moments = arrivals(12, 20, seed=1).tolist()
    timings, gaps = Simulation(system, moments, output_tokens=20, prompt_tokens=0, seed=1, window=(0, 1e9)).run()
    assert all(t.ok and t.first is not None and t.arrived < t.first < t.ended for t in timings)
    assert gaps.weights.sum() == pytest.approx(len(timings) * 19)
    alone = 0.1 + 19 * 0.02
    assert min(t.ended - t.arrived for t in timings) >= alone - 1e-9
    assert gaps.seconds[gaps.weights > 0].max() <= replica.step(4) + 1e-9


def test_nothing_gets_beyond_the_ceiling_and_pauses_of_the_router_cost() -> None:
    replica = ReplicaModel(first_s=0.2, first_each_s=0, step_s=0.05, step_each_s=0.01)
    carried = {}
    for name, router in (("eager", EAGER), ("as Ray's", Router())):
        system = System(replica, max_ongoing=4, router=router)
        timings = simulated(system, 2 * system.ceiling(0, 10), 600, tokens=10)
        carried[name] = len(timings) / max(t.ended for t in timings)
        assert carried[name] <= system.ceiling(0, 10) * 1.001
    assert carried["eager"] > carried["as Ray's"]
    assert carried["eager"] > 0.9 * System(replica, max_ongoing=4).ceiling(0, 10)


def test_a_full_queue_refuses() -> None:
    replica = ReplicaModel(first_s=1.0, first_each_s=0, step_s=0.1, step_each_s=0)
    timings = simulated(System(replica, max_ongoing=1, max_queued=2), 5, 200)
    refused = [t for t in timings if not t.ok]
    assert refused
    assert all(t.ended == t.arrived for t in refused)
    assert max(t.first - t.arrived for t in timings if t.first is not None) < 6


def test_the_same_seed_gives_the_same_figures() -> None:
    replica = ReplicaModel(0.1, 0.01, 0.02, 0.005, first_spread=(0.5, 1.0, 1.5))
    system = System(replica, replicas=3, max_ongoing=4)
    assert simulated(system, 8, 300, tokens=10) == simulated(system, 8, 300, tokens=10)
