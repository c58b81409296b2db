"""Which loads are tried, and where the knee is."""

import numpy as np
import pytest

from serve_app.capacity.figures import Figures, Gaps, Timing, summarise, weighted_quantile
from serve_app.capacity.knee import Slo, find_knee
from serve_app.capacity.sweep import along, sweep
from serve_app.capacity.workload import Pace, Workload, arrivals

SLO = Slo(ttft_p95=1.0, itl_p95=0.1)


def step(load: float, *, ttft: float = 0.1, itl: float = 0.01, failed: float = 0.0, done: float | None = None) -> Figures:
    done = load if done is None else done
    return Figures(load, 100, failed, done, done * 10, ttft / 2, ttft, itl / 2, itl, 0, 0, ttft + itl * 10)


def queue(load: float, capacity: float = 10.0) -> Figures:
    """M/M/1 as seen by its client."""
    if load >= capacity:
        return step(load, ttft=60, done=capacity)
    mean_s = 1 / (capacity - load)
    return Figures(load, 100, 0, load, load * 10, mean_s, mean_s * 3, 0.01, 0.01, 0, 0, mean_s)


def test_the_knee_lies_between_the_last_that_held_and_the_first_that_did_not() -> None:
    steps = [step(4, ttft=4), step(1), step(2, ttft=0.25), step(3, ttft=0.25)]
    assert find_knee(steps, SLO) == pytest.approx(3.5)  # 1 is the geometric middle of 0.25 and 4
    assert find_knee([step(1), step(2, itl=0.4, ttft=2), step(3, ttft=9)], SLO) == pytest.approx(1.625, abs=0.01)


def test_failures_break_every_objective() -> None:
    assert 1 < (find_knee([step(1), step(2, failed=0.5)], SLO) or 0) < 2


def test_a_sweep_that_does_not_show_the_knee_has_none() -> None:
    assert find_knee([step(1), step(2)], SLO) is None
    assert find_knee([step(1, ttft=3), step(2, ttft=9)], SLO) is None
    assert find_knee([], SLO) is None


def test_without_an_objective_the_knee_has_the_greatest_power() -> None:
    """Kleinrock: throughput over response time of an M/M/1 queue is greatest at half its capacity."""
    assert find_knee([queue(load / 2) for load in range(2, 24)], Slo()) == pytest.approx(5)


@pytest.mark.parametrize("guess", [2.0, 8.0, 30.0])
async def test_a_sweep_closes_in_on_the_knee_wherever_it_starts(guess: float) -> None:
    async def ask(load: float) -> Figures:
        return queue(load)

    steps = [figures async for figures in sweep(ask, Slo(ttft_p95=3.0), guess)]
    knee = find_knee(steps, Slo(ttft_p95=3.0))
    assert knee == pytest.approx(9, rel=0.05)
    assert len(steps) <= 12
    assert max(s.offered for s in steps) > 9 * 1.1, "one step beyond shows what the knee leads to"


async def test_given_loads_are_tried_as_they_are() -> None:
    async def ask(load: float) -> Figures:
        return queue(load)

    assert [figures.offered async for figures in along(ask, [3, 1, 2])] == [3, 1, 2]


def test_arrivals_are_as_many_as_offered_and_keep_their_pattern() -> None:
    slow, fast = arrivals(2, 50, seed=5), arrivals(4, 25, seed=5)
    assert len(slow) == len(fast) == 100
    assert np.all(np.diff(slow) > 0)
    assert slow[-1] < 50
    assert slow == pytest.approx(fast * 2)
    gaps = np.diff(arrivals(100, 200, seed=1))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05), "exponential gaps"


def test_questions_differ_and_repeat_with_the_seed() -> None:
    workload = Workload("m", prompt_tokens=20, output_tokens=7)
    bodies = [workload.body(number) for number in range(50)]
    assert len({str(body["messages"]) for body in bodies}) == 50
    assert bodies == [workload.body(number) for number in range(50)]
    assert len(bodies[0]["messages"][0]["content"].split()) == 20
    assert bodies[0]["max_tokens"] == 7
    assert bodies[0]["x_cache"] == {"mode": "bypass"}


def test_a_step_lasts_until_enough_have_come() -> None:
    pace = Pace(requests=100, least_s=5, most_s=20, warm_share=0.25)
    assert (pace.seconds(1), pace.seconds(10), pace.seconds(1000)) == (20, 10, 5)
    assert pace.window(10) == (2.5, 10)


def test_figures_count_from_the_moment_a_request_was_due() -> None:
    timings = [
        Timing(0.5, 0.6, 1.5, 10, ok=True),  # arrived while warming up: no latency, but it ended in the window
        Timing(1.0, 3.0, 4.0, 10, ok=True),
        Timing(2.0, 2.5, 9.0, 10, ok=True),  # ended after the window
        Timing(2.5, None, 3.5, 0, ok=False),
    ]
    figures = summarise(1.0, timings, Gaps(np.array([0.1, 0.3]), np.array([19.0, 1.0])), (1.0, 5.0))
    assert figures.requests == 3
    assert figures.failed_share == pytest.approx(1 / 3)
    assert figures.throughput == pytest.approx(2 / 4)
    assert figures.tokens_per_s == pytest.approx(20 / 4)
    assert figures.ttft_p50 == pytest.approx(1.25)
    assert figures.waiting == pytest.approx((2.0 + 0.5 + 1.0) / 4)
    assert figures.running == pytest.approx((0.5 + 1.0 + 2.5) / 4)


def test_weights_count_in_quantiles() -> None:
    gaps = Gaps(np.array([3.0, 1.0, 2.0]), np.array([1.0, 90.0, 9.0]))
    assert weighted_quantile(gaps, 0.5) == 1
    assert weighted_quantile(gaps, 0.95) == 2
    assert weighted_quantile(gaps, 0.999) == 3
