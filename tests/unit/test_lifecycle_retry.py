"""When a question is put to the replicas again."""

import pytest

from serve_app.errors import AifactoryError, BadRequest, Cancelled, DeadlineExceeded, NotFound, Overloaded, UpstreamFailed
from serve_app.lifecycle.retry import Backoff
from serve_app.settings import Settings

BACKOFF = Backoff(retries=3, first_s=0.2, most_s=1.0)


def test_the_settings_decide() -> None:
    settings = Settings(config="simulated", replica_retries=5, retry_backoff_s=0.5, retry_backoff_max_s=7)
    assert Backoff.of(settings) == Backoff(5, 0.5, 7)


@pytest.mark.parametrize(("retry", "longest"), [(0, 0.2), (1, 0.4), (2, 0.8)])
def test_pauses_double_with_jitter(retry: int, longest: float) -> None:
    pauses = [BACKOFF.pause(UpstreamFailed("x"), retry, seconds_left=10) for _ in range(100)]
    assert all(pause is not None and longest / 2 <= pause <= longest for pause in pauses)
    assert len(set(pauses)) > 50


def test_a_replica_that_names_a_pause_is_heeded_up_to_the_longest() -> None:
    heeded = [BACKOFF.pause(Overloaded("x", retry_after_s=wait), 0, seconds_left=10) for wait in (0.8, 60)]
    assert heeded[0] is not None
    assert 0.4 <= heeded[0] <= 0.8
    assert heeded[1] is not None
    assert 0.5 <= heeded[1] <= 1.0


@pytest.mark.parametrize("error", [BadRequest("x"), NotFound("x"), DeadlineExceeded("x"), Cancelled("x")])
def test_what_will_not_go_away_is_not_tried_again(error: AifactoryError) -> None:
    assert BACKOFF.pause(error, 0, seconds_left=10) is None


def test_retries_and_time_are_bounded() -> None:
    fault = UpstreamFailed("x")
    assert BACKOFF.pause(fault, 3, seconds_left=10) is None
    assert Backoff(0, 0.2, 1).pause(fault, 0, seconds_left=10) is None
    assert BACKOFF.pause(fault, 0, seconds_left=0.05) is None
