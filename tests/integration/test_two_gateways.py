"""Two gateways on one Postgres and one NATS: one execution per question, and nobody's leaving disturbs the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import pytest

from serve_app.bus.audience import NatsAudience
from serve_app.bus.connection import NatsConnection
from serve_app.bus.event_bus import NatsEventBus
from serve_app.bus.run_queue import run_queue
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from tests.contracts.conftest import NatsServer, nats_url, own_nats  # noqa: F401 - fixtures among them
from tests.integration.gateway_server import GatewayUnderTest, ScriptedReplicas, serve_gateway, until

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
TEXT = "The capital is Paris."


@dataclass
class Pair:
    """Two gateways with their own connections and one model between them."""

    gateways: list[GatewayUnderTest]
    clients: list[httpx.AsyncClient]
    replicas: ScriptedReplicas
    store: PostgresRunStore


@pytest.fixture
async def pair(postgres_dsn: str, nats_url: str) -> AsyncIterator[Pair]:  # noqa: F811 - the fixture imported above
    # Where nothing is said yet, the first silent second shows the reader its headers.
    async with two_gateways(postgres_dsn, nats_url, "jetstream", keepalive_s=1) as made:
        yield made


@pytest.fixture(params=["jetstream", "core"])
async def any_pair(request: pytest.FixtureRequest, postgres_dsn: str, nats_url: str) -> AsyncIterator[Pair]:  # noqa: F811
    """Both kinds of bus: what is promised whatever the setting."""
    async with two_gateways(postgres_dsn, nats_url, request.param) as made:
        yield made


@asynccontextmanager
async def two_gateways(
    postgres_dsn: str,
    nats_url: str,  # noqa: F811
    bus: Literal["jetstream", "core"],
    **overrides: Any,
) -> AsyncIterator[Pair]:
    replicas = ScriptedReplicas()
    settings = Settings(config="simulated", bus=bus, **overrides)
    async with AsyncExitStack() as stack:
        gateways, clients = [], []
        for number in range(2):
            pool = PostgresPool(postgres_dsn)
            connection = NatsConnection(nats_url, f"gateway-{number}")
            stack.push_async_callback(pool.close)
            stack.push_async_callback(connection.close)
            parts = {
                "store": PostgresRunStore(pool),
                "cache": PostgresAnswerCache(pool),
                "bus": NatsEventBus.for_settings(connection, settings),
                "queue": run_queue(connection, settings),
                "audience": NatsAudience(connection),
                "replicas": replicas,
            }
            connection.start()
            await connection.wait_connected(30)
            gateways.append(await stack.enter_async_context(serve_gateway(parts, **overrides)))
            clients.append(await stack.enter_async_context(gateways[-1].http()))
        yield Pair(gateways, clients, replicas, PostgresRunStore(PostgresPool(postgres_dsn)))


async def test_a_hundred_identical_requests_are_executed_once(any_pair: Pair) -> None:
    pair = any_pair
    answers = await asyncio.gather(
        *(pair.clients[n % 2].post("/v1/chat/completions", json={**ASK, "stream": n % 3 == 0}) for n in range(100))
    )
    assert pair.replicas.calls == 1
    assert {a.status_code for a in answers} == {200}
    assert {a.json()["choices"][0]["message"]["content"] for a in answers if "json" in a.headers["content-type"]} == {TEXT}
    for streamed in (a.text for a in answers if "event-stream" in a.headers["content-type"]):
        assert streamed.endswith("data: [DONE]\n\n")


async def test_late_joiner_elsewhere_gets_the_answer_and_survives_the_first(any_pair: Pair) -> None:
    pair = any_pair
    pair.replicas.hold = asyncio.Event()
    first, second = pair.gateways
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(_ask_and_stay(pair.clients[0], {**ASK, "stream": True}))
        await until(lambda: pair.replicas.running == 1)
        (trace_id,) = first.lifecycle.local_runs.leased()
        staying = group.create_task(pair.clients[1].post("/v1/chat/completions", json=ASK))
        await until(lambda: second.lifecycle.readers.count(trace_id) == 1)
        leaving.cancel()
        await until(lambda: first.lifecycle.readers.count(trace_id) == 0)
        pair.replicas.hold.set()
    assert staying.result().json()["choices"][0]["message"]["content"] == TEXT
    assert staying.result().headers["x-cache"] == "attached"
    assert pair.replicas.aborted == 0


async def test_the_last_reader_stops_the_run_also_from_another_gateway(any_pair: Pair) -> None:
    pair = any_pair
    pair.replicas.hold = asyncio.Event()
    first, second = pair.gateways
    async with asyncio.TaskGroup() as group:
        one = group.create_task(_ask_and_stay(pair.clients[0], ASK))
        await until(lambda: pair.replicas.running == 1)
        (trace_id,) = first.lifecycle.local_runs.leased()
        other = group.create_task(_ask_and_stay(pair.clients[1], {**ASK, "stream": True}))
        await until(lambda: second.lifecycle.readers.count(trace_id) == 1)
        one.cancel()
        await until(lambda: first.lifecycle.readers.count(trace_id) == 0)
        assert pair.replicas.running == 1
        other.cancel()
        await until(lambda: pair.replicas.running == 0)

    async def cancelled() -> bool:
        row = await first.store.find(trace_id)
        return row is not None and row.status is RunStatus.CANCELLED

    await _until_true(cancelled)


async def test_cancel_and_resume_on_the_other_gateway(pair: Pair) -> None:
    pair.replicas.hold = asyncio.Event()
    async with pair.clients[0].stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
        trace_id = response.headers["x-trace-id"]
        async with pair.clients[1].stream("GET", f"/v1/runs/{trace_id}/events", headers={"Last-Event-ID": "0"}) as resumed:
            lines = resumed.aiter_lines()
            ids = [line async for line in _some_ids(lines, 1)]
            assert ids == ["id: 1"]
            cancelled = await pair.clients[1].post(f"/v1/runs/{trace_id}/cancel")
            assert cancelled.status_code == 202
            rest = [line async for line in lines]
        first_text = "".join([part async for part in response.aiter_text()])
    for text in (first_text, "\n".join(rest)):
        assert '"code":"cancelled"' in text
        assert "[DONE]" not in text
    assert pair.replicas.running == 0


@pytest.mark.parametrize("bus", ["jetstream", "core"])
async def test_a_cancel_gets_through_while_nats_is_away(
    postgres_dsn: str,
    own_nats: NatsServer,  # noqa: F811
    bus: Literal["jetstream", "core"],
) -> None:
    async with two_gateways(postgres_dsn, own_nats.url, bus, lease_s=1.5) as pair:
        pair.replicas.hold = asyncio.Event()
        async with pair.clients[0].stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
            trace_id = response.headers["x-trace-id"]
            own_nats.kill()
            for _ in range(2):  # twice is the same as once
                cancelled = await pair.clients[1].post(f"/v1/runs/{trace_id}/cancel")
                assert (cancelled.status_code, cancelled.json()["status"] != "succeeded") in ((202, True), (200, True))
            text = "".join([part async for part in response.aiter_text()])
        assert "the run was cancelled: cancelled by the caller" in text
        assert "[DONE]" not in text
        assert pair.replicas.running == 0
        row = await pair.store.find(trace_id)
        assert row is not None
        assert row.status is RunStatus.CANCELLED


async def test_a_run_that_is_being_cancelled_takes_no_newcomers(pair: Pair) -> None:
    """They did not ask for its end; a moment later the same question is executed anew."""
    pair.replicas.hold = asyncio.Event()
    body = {**ASK, "x_route": "workflow"}  # there is no worker that could stop it
    async with pair.clients[0].stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        trace_id = response.headers["x-trace-id"]
        assert (await pair.clients[1].post(f"/v1/runs/{trace_id}/cancel")).status_code == 202
        newcomer = await pair.clients[0].post("/v1/chat/completions", json=body)
    assert newcomer.status_code == 503
    assert newcomer.headers["retry-after"] == "1"


async def test_the_last_reader_of_a_waiting_run_leaves_its_cancel_in_the_log(pair: Pair) -> None:
    async with pair.clients[0].stream(
        "POST", "/v1/chat/completions", json={**ASK, "x_route": "workflow", "stream": True}
    ) as response:
        trace_id = response.headers["x-trace-id"]

    async def asked() -> bool:
        row = await pair.store.find(trace_id)
        return row is not None and row.cancel_reason == "the client left"

    await _until_true(asked)


async def test_events_of_an_ended_run_can_be_read_on_the_other_gateway(pair: Pair) -> None:
    first = await pair.clients[0].post("/v1/chat/completions", json={**ASK, "stream": True})
    trace_id = first.headers["x-trace-id"]
    whole = await pair.clients[1].get(f"/v1/runs/{trace_id}/events")
    assert [line for line in whole.text.splitlines() if line.startswith("id: ")] == [
        line for line in first.text.splitlines() if line.startswith("id: ")
    ]
    rest = await pair.clients[1].get(f"/v1/runs/{trace_id}/events?after=3")
    assert "Paris." in rest.text
    assert "capital" not in rest.text


async def _some_ids(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    async for line in lines:
        if line.startswith("id: "):
            yield line
            count -= 1
        if count == 0:
            return


async def _ask_and_stay(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_raw():
            pass


async def _until_true(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)
