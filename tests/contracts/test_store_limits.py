"""Rates and budgets of keys and projects, against a real Postgres and several pools, as several gateways have."""

import asyncio
from typing import Any

import pytest

from serve_app.errors import QuotaExhausted, RateLimited
from serve_app.limits import Limits, Standing, key_subject, project_subject
from serve_app.runs import RunStatus
from tests.contracts.limit_office import LEASE_S, Office, a_run, outcome_of


async def test_gateways_share_a_rate_exactly(office: Office) -> None:
    account = await office.account(requests_per_minute=7)
    standings = await asyncio.gather(*(office.meters[n % 2].enter(account) for n in range(40)))
    granted = [standing for standing in standings if standing.refusal is None]
    # One more fills in after 60 / 7 seconds, should this take so long.
    assert 7 <= len(granted) <= 9
    assert sorted(standing.requests.remaining for standing in granted if standing.requests)[:7] == [0, 1, 2, 3, 4, 5, 6]
    for standing in standings:
        if standing.refusal is not None:
            assert isinstance(standing.refusal, RateLimited)
            assert 0 < (standing.refusal.retry_after_s or 0) <= 60 / 7
            assert standing.requests is not None
            assert standing.headers()["x-ratelimit-limit-requests"] == "7"


async def test_a_rate_fills_up_evenly(office: Office) -> None:
    account = await office.account(requests_per_minute=6)
    for _ in range(6):
        assert (await office.meter.enter(account)).refusal is None
    full = await office.meter.enter(account)
    assert isinstance(full.refusal, RateLimited)
    await office.sql("UPDATE request_rates SET full_at = full_at - interval '21 seconds'")  # two requests' worth
    again = [(await office.meter.enter(account)).refusal for _ in range(3)]
    assert again[:2] == [None, None]
    await office.sql("UPDATE request_rates SET full_at = full_at - interval '1 day'")
    rested = await office.meter.enter(account)
    assert rested.requests is not None
    assert rested.requests.remaining == 5
    assert 9 < rested.requests.reset_s <= 10


@pytest.mark.parametrize("rate", [1, 7, 59, 1000, 3333, 1_000_000])
async def test_a_full_bucket_holds_the_whole_rate(office: Office, rate: int) -> None:
    account = await office.account(requests_per_minute=rate)
    standing = await office.meter.enter(account)
    assert standing.requests is not None
    assert standing.refusal is None
    assert (standing.requests.limit, standing.requests.remaining) == (rate, rate - 1)
    # As if all but one were spent, and then one more: it fits.
    await office.sql(
        "UPDATE request_rates SET full_at = now() + $1 * make_interval(secs => (60000000 / $2) / 1e6)", rate - 1.0, rate
    )
    assert (await office.meter.enter(account)).refusal is None


async def test_of_key_and_project_the_smaller_rate_holds(office: Office) -> None:
    one, other = await office.account(requests_per_minute=100), await office.account(requests_per_minute=2)
    await office.meter.set_of_project("blue", Limits(requests_per_minute=4))
    spent = [(await office.meter.enter(other)).refusal for _ in range(5)]
    assert [refusal is None for refusal in spent] == [True, True, False, False, False]
    assert "this API key may ask 2 times a minute" in str(spent[2])
    # A key that is over its own rate has taken nothing from the others of its project.
    rest = [await office.meter.enter(one) for _ in range(3)]
    assert [standing.refusal is None for standing in rest] == [True, True, False]
    assert rest[0].headers()["x-ratelimit-remaining-requests"] == "1"
    assert "project 'blue' may ask 4 times a minute" in str(rest[2].refusal)


async def test_a_budget_is_spent_by_what_is_recorded(office: Office) -> None:
    account = await office.account(tokens=100, period="day")
    await office.meter.set_of_project("blue", Limits(tokens=1000, period="month"))
    store = office.stores[0]
    for outcome, used in (
        (outcome_of(40), 40),
        (outcome_of(30, cache="semantic"), 40),
        (outcome_of(5, status=RunStatus.CANCELLED), 45),
        (outcome_of(6, status=RunStatus.FAILED), 51),
    ):
        assert (await office.meter.enter(account)).refusal is None
        run = a_run(account)
        assert (await store.claim(run, lease_s=LEASE_S)).claimed
        assert await store.settle(run, outcome)
        assert not await store.settle(run, outcome)  # recorded once, charged once
        assert await office.used(key_subject(account.key_id)) == used
        assert await office.used(project_subject("blue")) == used
    standing = await office.meter.enter(account)
    assert standing.requests is None
    assert standing.tokens is not None
    assert (standing.tokens.limit, standing.tokens.remaining) == (100, 49)
    assert 0 < standing.tokens.reset_s <= 86_400
    await office.meter.charge(account, 60)
    over = await office.meter.enter(account)
    assert isinstance(over.refusal, QuotaExhausted)
    assert over.headers()["x-ratelimit-remaining-tokens"] == "0"


async def test_a_budget_that_is_used_up_spends_no_request(office: Office) -> None:
    account = await office.account(requests_per_minute=2, tokens=10, period="day")
    await office.meter.charge(account, 10)
    for _ in range(5):
        refused = await office.meter.enter(account)
        assert isinstance(refused.refusal, QuotaExhausted)
        assert refused.requests is None  # nobody looked at the bucket
        assert not [name for name in refused.headers() if name.endswith("-requests")]
    await office.sql("UPDATE limits SET used = 0")
    assert (await office.meter.enter(account)).headers()["x-ratelimit-remaining-requests"] == "1"


@pytest.mark.parametrize("period", ["day", "month"])
async def test_a_new_period_brings_new_tokens(office: Office, period: Any) -> None:
    account = await office.account(tokens=10, period=period)
    await office.meter.charge(account, 10)
    assert isinstance((await office.meter.enter(account)).refusal, QuotaExhausted)
    await office.sql(f"UPDATE limits SET period_start = period_start - interval '1 {period}'")
    fresh = await office.meter.enter(account)
    assert fresh.refusal is None
    assert fresh.headers()["x-ratelimit-remaining-tokens"] == "10"
    assert (await office.meter.list())[0].used == 0
    await office.meter.charge(account, 3)
    assert await office.used(key_subject(account.key_id)) == 3


async def test_no_charge_is_lost_between_gateways(office: Office) -> None:
    one, other = await office.account(tokens=10**6, period="day"), await office.account(tokens=10**6, period="day")
    await office.meter.set_of_project("blue", Limits(tokens=10**6, period="day"))
    await asyncio.gather(*(office.meters[n % 2].charge((one, other)[n % 3 == 0], n) for n in range(100)))
    assert await office.used(project_subject("blue")) == sum(range(100))
    assert await office.used(key_subject(other.key_id)) == sum(range(0, 100, 3))


async def test_who_has_no_limits_stands_nowhere(office: Office) -> None:
    account = await office.account()
    assert await office.meter.enter(account) == Standing()
    await office.meter.charge(account, 5)
    assert await office.meter.list() == []


async def test_limits_are_set_anew_and_removed(office: Office) -> None:
    account = await office.account(tokens=10, period="day")
    await office.meter.charge(account, 4)
    assert await office.meter.set_of_key(account.key_id, Limits(requests_per_minute=5, tokens=20, period="day"))
    [entry] = await office.meter.list()
    assert (entry.limits, entry.used) == (Limits(requests_per_minute=5, tokens=20, period="day"), 4)
    assert (await office.meter.enter(account)).refusal is None
    assert await office.meter.set_of_key(account.key_id, Limits())
    assert await office.meter.list() == []
    assert await office.sql("SELECT count(*) FROM request_rates") == 0
    assert not await office.meter.set_of_key("nonsense", Limits(tokens=1, period="day"))
    assert not await office.meter.set_of_key("00000000-0000-0000-0000-000000000000", Limits(tokens=1, period="day"))
    with pytest.raises(ValueError, match="cannot name a project"):
        await office.meter.set_of_project("a b", Limits(tokens=1, period="day"))


@pytest.mark.parametrize(
    "wrong",
    [{"requests_per_minute": 0}, {"requests_per_minute": 10**7}, {"concurrent_runs": -1}, {"tokens": 5}, {"period": "day"}],
)
def test_what_cannot_be_a_limit(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|at most|needs a number"):
        Limits(**wrong)
