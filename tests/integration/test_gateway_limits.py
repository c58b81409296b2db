"""Limits seen by a client: gateways on one Postgres, real keys, OpenAI's status, codes and headers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from serve_app.limits import Account, Limits, project_subject
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.api_keys import ApiKeys
from serve_app.store.limits import PostgresLimits
from serve_app.store.migrate import migrate
from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.integration.gateway_server import GatewayUnderTest, ScriptedReplicas, serve_gateway, until

ANSWER_TOKENS = 9  # what the scripted model's whole answer costs
CHAT = "/v1/chat/completions"


class CountingPool(PostgresPool):
    """Knows the statements that went to Postgres."""

    statements: list[str]

    async def _prepare(self, connection: Connection) -> None:
        await super()._prepare(connection)
        connection.add_query_logger(lambda record: self.statements.append(" ".join(record.query.split())))


@dataclass
class House:
    """Gateways with one Postgres and one model between them."""

    pool: CountingPool
    gateways: list[GatewayUnderTest] = field(default_factory=list)
    replicas: ScriptedReplicas = field(default_factory=ScriptedReplicas)

    @property
    def keys(self) -> ApiKeys:
        return ApiKeys(self.pool)

    @property
    def limits(self) -> PostgresLimits:
        return PostgresLimits(self.pool)

    async def key(self, project: str = "p", **limits: Any) -> str:
        return await self.keys.create(project, projects=["q"], limits=Limits(**limits))

    async def used(self, key: str) -> int:
        owner = await self.keys.check(key)
        assert owner is not None
        return next(entry.used for entry in await self.limits.list() if entry.subject.endswith(owner.key_id))

    def http(self, key: str, gateway: int = 0) -> httpx.AsyncClient:
        return self.gateways[gateway].http(key)


@asynccontextmanager
async def open_house(dsn: str, count: int = 1) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        pools = [CountingPool(dsn) for _ in range(count)]
        for pool in pools:
            pool.statements = []
            stack.push_async_callback(pool.close)
        house = House(pools[0])
        for pool in pools:
            parts = {"store": PostgresRunStore(pool), "cache": PostgresAnswerCache(pool), "replicas": house.replicas}
            serving = serve_gateway(parts, keys=ApiKeys(pool), meter=PostgresLimits(pool))
            house.gateways.append(await stack.enter_async_context(serving))
        yield house


@pytest.fixture
async def house(postgres_dsn: str) -> AsyncIterator[House]:
    async with open_house(postgres_dsn) as opened:
        yield opened


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


async def test_over_the_rate(postgres_dsn: str) -> None:
    async with open_house(postgres_dsn, 2) as house:
        key = await house.key(requests_per_minute=4)
        async with house.http(key) as one, house.http(key, 1) as other:
            asked = [(one, other)[n % 2].post(CHAT, json=ask(f"question {n}", stream=n % 3 == 0)) for n in range(12)]
            answers = await asyncio.gather(*asked)
        # A new request fits every 15 s, should this take so long.
        assert 4 <= Counter(answer.status_code for answer in answers)[200] <= 6
        assert house.replicas.calls < 7
        for answer in answers:
            assert answer.headers["x-ratelimit-limit-requests"] == "4"
            assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
            if answer.status_code == 200:
                assert int(answer.headers["x-ratelimit-remaining-requests"]) in range(4)
                continue
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 16
            assert "x-should-retry" not in answer.headers
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert len(answer.headers["x-trace-id"]) == 32


async def test_an_exhausted_budget_is_not_worth_a_retry(house: House) -> None:
    key = await house.key(tokens=ANSWER_TOKENS + 1, period="month")
    async with house.http(key) as http:
        first = await http.post(CHAT, json=ask("one"))
        assert first.headers["x-ratelimit-remaining-tokens"] == str(ANSWER_TOKENS + 1)
        assert await house.used(key) == ANSWER_TOKENS
        second = await http.post(CHAT, json=ask("two"))
        assert second.headers["x-ratelimit-remaining-tokens"] == "1"
        refused = await http.post(CHAT, json=ask("three"))
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert refused.json()["error"]["type"] == refused.json()["error"]["code"] == "insufficient_quota"
    async with openai.AsyncOpenAI(base_url=f"{house.gateways[0].url}/v1", api_key=key, max_retries=5) as client:
        with pytest.raises(openai.RateLimitError, match="has used its 10 tokens"):
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "four"}])
    assert house.replicas.calls == 2


async def test_the_cache_and_followers_cost_no_tokens(house: House) -> None:
    key = await house.key(tokens=1000, period="day", concurrent_runs=1)
    async with house.http(key) as http:
        house.replicas.hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(http.post(CHAT, json=ask("same thing")))
            await until(lambda: house.replicas.running == 1)
            following = group.create_task(http.post(CHAT, json=ask("same thing", stream=True)))
            await until(lambda: sum(house.gateways[0].lifecycle.readers.count(t) for t in _running(house)) == 2)
            house.replicas.hold.set()
        assert leading.result().headers["x-cache"] == "miss"
        assert following.result().headers["x-cache"] == "attached"
        again = await http.post(CHAT, json=ask("same thing"))
        assert again.headers["x-cache"] == "exact"
        similar = await http.post(CHAT, json=ask("the same thing"))  # the test's embedder finds it equal
        assert similar.headers["x-cache"] == "semantic"
    assert await house.used(key) == ANSWER_TOKENS


async def test_an_answer_that_was_cut_costs_what_was_made_of_it(house: House) -> None:
    key = await house.key(tokens=1000, period="day", concurrent_runs=1)
    house.replicas.hold = asyncio.Event()
    async with house.http(key) as http:
        async with http.stream("POST", CHAT, json=ask("leave", stream=True)) as response:
            pieces = response.aiter_raw()  # kept: when it goes, so does the stream
            await anext(pieces)
            busy = await http.post(CHAT, json=ask("another"))
            assert (busy.status_code, busy.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
            assert busy.headers["retry-after"] == "2"
        await until(lambda: house.replicas.running == 0)
        await _until_true(lambda: house.used(key), 6)  # five of the prompt, and the first token
        house.replicas.hold.set()
        assert (await http.post(CHAT, json=ask("another"))).status_code == 200


async def test_limits_of_the_project_that_a_key_acts_for(house: House) -> None:
    await house.limits.set_of_project("q", Limits(tokens=1000, period="day"))
    key = await house.key()
    async with house.http(key) as http:
        assert "x-ratelimit-limit-tokens" not in (await http.post(CHAT, json=ask("one"))).headers
        assert "x-ratelimit-limit-tokens" in (await http.post(CHAT, json=ask("two", x_project="q"))).headers
    entry = next(entry for entry in await house.limits.list() if entry.subject == project_subject("q"))
    assert entry.used == ANSWER_TOKENS


async def test_completions_and_embeddings_are_counted_too(house: House) -> None:
    key = await house.key(tokens=1000, period="day", requests_per_minute=100, concurrent_runs=1)
    completion = {"model": "m", "prompt": "The capital of France is"}
    async with house.http(key) as http:
        whole = await http.post("/v1/completions", json=completion)
        assert whole.json()["choices"][0]["text"] == "Paris"
        assert whole.headers["x-ratelimit-remaining-requests"] == "99"
        assert await house.used(key) == 1  # the scripted model tells no usage: a chunk is a token
        streamed = await http.post("/v1/completions", json={**completion, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert await house.used(key) == 2
        owner = await house.keys.check(key)
        assert owner is not None
        async with house.limits.place(Account(owner.key_id, "p"), "f" * 32, for_s=60):
            busy = await http.post("/v1/completions", json=completion)
            assert (busy.status_code, busy.json()["error"]["code"]) == (429, "concurrency_limit_exceeded")
        embedded = await http.post("/v1/embeddings", json={"model": "hash", "input": "three words long"})
        assert embedded.headers["x-ratelimit-remaining-requests"] == "96"
        assert await house.used(key) == 5
        async with house.pool.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM passing_places") == 0


async def test_without_limits_postgres_is_asked_nothing_more(house: House) -> None:
    await house.key("other", requests_per_minute=5)
    key = await house.key()
    async with house.http(key) as http:
        await http.post(CHAT, json=ask("warm up"))
        house.pool.statements.clear()
        answer = await http.post(CHAT, json=ask("count"))
        statements = list(house.pool.statements)
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    # The exact recall, the claim, the search by meaning; then the end: the run, the answer and its vector at once.
    assert _kinds(statements) == [
        "SELECT completions_cache",
        "INSERT idempotency_log",
        "SELECT completion_vectors",
        "UPDATE idempotency_log",
    ]


async def test_while_postgres_is_away_only_keys_without_limits_go_on(unstarted_postgres: EmbeddedPostgres) -> None:
    process = unstarted_postgres.start()
    try:
        await migrate(unstarted_postgres.dsn())
        async with open_house(unstarted_postgres.dsn()) as house:
            free, limited = await house.key(), await house.key("r", requests_per_minute=100)
            async with house.http(free) as http, house.http(limited) as limited_http:
                assert (await http.post(CHAT, json=ask("before"))).status_code == 200
                assert (await limited_http.post(CHAT, json=ask("before"))).status_code == 200
                unstarted_postgres.stop(process)
                assert (await http.post(CHAT, json=ask("during"))).status_code == 200
                refused = await limited_http.post(CHAT, json=ask("during"))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
                assert 1 <= int(refused.headers["retry-after"]) <= 120
                process = unstarted_postgres.start()
                await _until_true(lambda: _status(limited_http), 200)
    finally:
        unstarted_postgres.stop(process)


async def test_limits_that_come_and_go_are_noticed(house: House) -> None:
    house.gateways[0].state.auth._ttl_s = 0  # each request asks who calls
    key = await house.key()
    owner = await house.keys.check(key)
    assert owner is not None
    async with house.http(key) as http:
        assert (await http.post(CHAT, json=ask("one"))).status_code == 200
        await house.limits.set_of_key(owner.key_id, Limits(requests_per_minute=1))
        assert [(await http.post(CHAT, json=ask("one"))).status_code for _ in range(2)] == [200, 429]
        await house.limits.set_of_key(owner.key_id, Limits())
        assert (await http.post(CHAT, json=ask("one"))).status_code == 200


def _kinds(statements: list[str]) -> list[str]:
    """What each statement does first to which table."""
    kinds = []
    for statement in statements:
        words = statement.replace("(", " ").rstrip(";").split()
        verb = next(word for word in words if word in {"SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT"})
        tables = [
            w for w in words if w in {"completions_cache", "completion_vectors", "run_history", "idempotency_log", "limits"}
        ]
        kinds.append(" ".join([verb, *tables[:1]]))
    return kinds


def _running(house: House) -> list[str]:
    return house.gateways[0].lifecycle.local_runs.leased()


async def _status(http: httpx.AsyncClient) -> int:
    return (await http.post(CHAT, json=ask("after"))).status_code


async def _until_true(found: Callable[[], Any], wanted: Any) -> None:
    async with asyncio.timeout(30):
        while await found() != wanted:
            await asyncio.sleep(0.05)
