"""What a legacy completion is charged, and that its place is free again, whatever becomes of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.limits import Account
from serve_app.store.limits import PostgresLimits
from tests.integration.gateway_server import until
from tests.integration.test_gateway_limits import House, _until_true, open_house

PATH = "/v1/completions"
PROMPT_TOKENS = 5


@pytest.fixture
async def house(postgres_dsn: str) -> AsyncIterator[House]:
    async with open_house(postgres_dsn) as opened:
        yield opened


def usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def piece(index: int, so_far: int) -> dict[str, Any]:
    """A chunk as vLLM sends it with continuous_usage_stats: the usage is that of its choice alone."""
    return {"choices": [{"index": index, "text": "x", "finish_reason": None}], "usage": usage(PROMPT_TOKENS, so_far)}


PIECES = [piece(0, 1), piece(1, 1), piece(0, 2), piece(2, 1)]


async def places(house: House) -> int:
    async with house.pool.connection() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM passing_places"))


@pytest.mark.parametrize(
    ("asked", "spent"),
    [
        ({"prompt": "one", "n": 3}, PROMPT_TOKENS + 4),
        ({"prompt": ["one", "two", "three"]}, 3 * PROMPT_TOKENS + 4),
        ({"prompt": ["one", "two"], "n": 2}, 2 * PROMPT_TOKENS + 4),
    ],
)
async def test_a_completion_that_is_left_costs_all_its_choices(house: House, asked: dict[str, Any], spent: int) -> None:
    house.replicas.completion = PIECES
    house.replicas.hold = asyncio.Event()
    key = await house.key(tokens=1000, period="day", concurrent_runs=1)
    async with house.http(key) as http, http.stream("POST", PATH, json={"model": "m", **asked, "stream": True}) as response:
        lines = (line async for line in response.aiter_lines() if line)
        read = [await anext(lines) for _ in PIECES]
        assert not [line for line in read if "usage" in line], "nobody asked for it"
    await _until_true(lambda: house.used(key), spent)
    await _until_true(lambda: places(house), 0)
    assert house.replicas.running == 0


async def test_the_last_chunk_and_a_whole_body_tell_it_all(house: House) -> None:
    key = await house.key(tokens=1000, period="day")
    async with house.http(key) as http:
        house.replicas.completion = [*PIECES, {"choices": [], "usage": usage(PROMPT_TOKENS, 40)}]
        await http.post(PATH, json={"model": "m", "prompt": "one", "n": 3, "stream": True})
        assert await house.used(key) == 45
        choices = [{"index": index, "text": "x", "finish_reason": "stop"} for index in range(3)]
        house.replicas.completion = [{"choices": choices, "usage": usage(PROMPT_TOKENS, 30)}]
        whole = await http.post(PATH, json={"model": "m", "prompt": "one", "n": 3})
        assert whole.json()["usage"]["total_tokens"] == 35
        assert await house.used(key) == 80


async def test_the_engine_stops_before_the_charge_and_the_place_is_left_though_it_fails(house: House) -> None:
    seen: list[tuple[int, int]] = []

    class Broken(PostgresLimits):
        async def charge(self, account: Account, tokens: int) -> None:
            seen.append((house.replicas.running, await places(house)))
            raise RuntimeError("a fault of ours")

    house.gateways[0].state.meter = Broken(house.pool)
    key = await house.key(tokens=1000, period="day", concurrent_runs=1)
    async with house.http(key) as http:
        assert (await http.post(PATH, json={"model": "m", "prompt": "one"})).status_code == 500
    await until(lambda: house.replicas.running == 0)
    assert seen == [(0, 1)]
    assert await places(house) == 0
