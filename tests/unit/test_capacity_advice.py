"""What follows from a replica's model for the knobs."""

import pytest

from serve_app.capacity.advice import Debates, advise, long_run_knee, predict
from serve_app.capacity.knee import Slo
from serve_app.capacity.replica_model import ReplicaModel
from serve_app.capacity.simulation import System
from serve_app.capacity.workload import Pace, Workload

REPLICA = ReplicaModel(first_s=0.1, first_each_s=0, step_s=0.02, step_each_s=0.005)
SYSTEM = System(REPLICA, replicas=1, max_ongoing=8)
WORKLOAD = Workload("m", prompt_tokens=64, output_tokens=16)
SLO = Slo(ttft_p95=1.0, itl_p95=0.06)


def test_the_knee_is_below_the_ceiling_and_the_objective_holds_there() -> None:
    knee = long_run_knee(SYSTEM, WORKLOAD, SLO)
    assert 0.5 * SYSTEM.ceiling(64, 16) < knee < SYSTEM.ceiling(64, 16)
    assert SLO.strain(predict(SYSTEM, WORKLOAD, knee * 0.9, Pace(requests=1000, least_s=10, most_s=1000))) <= 1


def test_advised_systems_carry_the_rate_with_room_to_spare() -> None:
    few = advise(SYSTEM, WORKLOAD, SLO, rate=5, headroom=0.8, debates=None)
    many = advise(SYSTEM, WORKLOAD, SLO, rate=20, headroom=0.8, debates=None)
    for advice in (few, many):
        assert advice.knee * 0.8 >= advice.rate * 0.99
        assert 1 <= advice.target_ongoing_requests < advice.max_ongoing_requests
        assert advice.workers == 1
    assert many.replicas > few.replicas
    fewer = System(REPLICA, replicas=many.replicas - 1, max_ongoing=many.max_ongoing_requests)
    assert long_run_knee(fewer, WORKLOAD, SLO) * 0.8 < 20


def test_slow_tokens_bound_the_places() -> None:
    wide = System(REPLICA, replicas=1, max_ongoing=64)
    loose = advise(wide, WORKLOAD, Slo(ttft_p95=5, itl_p95=0.5), rate=5, headroom=0.8, debates=None)
    tight = advise(wide, WORKLOAD, Slo(ttft_p95=5, itl_p95=0.03), rate=5, headroom=0.8, debates=None)
    assert tight.max_ongoing_requests <= 4
    assert tight.max_ongoing_requests < loose.max_ongoing_requests
    assert tight.replicas > loose.replicas


def test_debates_need_replicas_and_workers() -> None:
    debates = Debates(rate=2, drafts=3, rounds=1, closing_calls=2, runs_per_worker=1)
    assert debates.calls == 5
    plain = advise(SYSTEM, WORKLOAD, SLO, rate=2, headroom=0.8, debates=None)
    mixed = advise(SYSTEM, WORKLOAD, SLO, rate=2, headroom=0.8, debates=debates)
    assert mixed.replicas > plain.replicas
    # Two calls one after another of half a second each, twice a second, at 70 % of one run a worker.
    assert 2 <= mixed.workers <= 6


def test_what_nobody_can_keep_is_said() -> None:
    with pytest.raises(ValueError, match="a lone request misses the objective"):
        advise(SYSTEM, WORKLOAD, Slo(ttft_p95=0.05), rate=1, headroom=0.8, debates=None)


def test_without_an_objective_there_is_advice_too() -> None:
    assert advise(SYSTEM, WORKLOAD, Slo(), rate=5, headroom=0.8, debates=None).replicas >= 1
