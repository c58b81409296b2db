"""A replica's model from measured levels."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from serve_app.capacity.replica_model import Level, ReplicaModel, fit


def level(count: int, first_s: float, step_s: float, *, noise: float = 0.0, prompt_tokens: float = 64) -> Level:
    random = Random(count)
    firsts = [first_s * (1 + random.uniform(-noise, noise)) for _ in range(60)]
    steps = [step_s * (1 + random.uniform(-noise, noise)) for _ in range(60)]
    return Level(count, firsts, steps, [step - step_s for step in steps], prompt_tokens)


def test_lines_are_found_through_noise() -> None:
    levels = [level(n, 0.2 + 0.01 * (n - 1), 0.03 + 0.004 * (n - 1), noise=0.2) for n in (1, 2, 4, 8, 16)]
    replica = fit(levels)
    for n in (1, 8, 16):
        assert replica.step(n) == pytest.approx(0.03 + 0.004 * (n - 1), rel=0.1)
        assert replica.first(n, 64) == pytest.approx(0.2 + 0.01 * (n - 1), rel=0.1)
    assert replica.straight


def test_gaps_scatter_by_seconds_each_level_alike() -> None:
    quiet, noisy = level(1, 0.2, 0.03), level(8, 0.2, 0.06, noise=0.5)
    replica = fit([quiet, replace(noisy, offsets=[*noisy.offsets] * 20)])
    offsets = np.array(replica.step_offsets)
    assert offsets.mean() == pytest.approx(0, abs=0.003)
    assert np.mean(np.abs(offsets) < 1e-6) == pytest.approx(0.5, abs=0.1), "the quiet level counts as much as the noisy one"
    assert 0.02 < offsets.max() <= 0.03


def test_a_bent_curve_is_owned_up_to() -> None:
    replica = fit([level(n, 0.2, 0.03 if n < 16 else 0.2) for n in (1, 2, 4, 8, 16)])
    assert not replica.straight
    assert replica.worst_miss > 0.15


def test_no_line_falls() -> None:
    replica = fit([level(1, 0.2, 0.031), level(2, 0.19, 0.03), level(4, 0.18, 0.029)])
    assert replica.step_each_s == replica.first_each_s == 0
    assert replica.step(1000) == pytest.approx(0.03, rel=0.05)


def test_one_level_is_a_constant() -> None:
    replica = fit([level(1, 0.2, 0.03)])
    assert replica.first(9, 64) == pytest.approx(0.2)
    assert replica.step(9) == pytest.approx(0.03)


def test_a_longer_prompt_gives_the_cost_of_its_tokens() -> None:
    replica = fit([level(1, 0.2, 0.03), level(2, 0.2, 0.03)], long_prompt=level(1, 0.39, 0.03, prompt_tokens=254))
    assert replica.prefill_token_s == pytest.approx(0.001)
    assert replica.first(1, 64) == pytest.approx(0.2)
    assert replica.first(1, 1064) == pytest.approx(1.2)


def test_nothing_measured_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        fit([Level(1, [], [], [], 0)])


def test_a_model_survives_json() -> None:
    replica = fit([level(1, 0.2, 0.03, noise=0.1), level(4, 0.3, 0.05)])
    assert ReplicaModel.from_json(json.loads(json.dumps(replica.as_json()))) == replica
    with pytest.raises(ValueError, match="not a replica's model"):
        ReplicaModel.from_json({"first_s": 1})


def test_the_ceiling_is_where_places_and_pace_put_it() -> None:
    replica = ReplicaModel(first_s=0.1, first_each_s=0, step_s=0.02, step_each_s=0.005)
    assert replica.serves(4, 0, 11) == pytest.approx(4 / (0.1 + 10 * 0.035))
