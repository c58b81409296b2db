"""Chat through a real socket with a real OpenAI client: streams, ends, cache, keys, cancellation."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import openai
import pytest

from serve_app.errors import Overloaded, UpstreamFailed
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.runs import RunStatus
from tests.integration.gateway_server import KEY, GatewayUnderTest, serve_gateway, until

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
TEXT = "The capital is Paris."


@pytest.fixture
async def client(gateway: GatewayUnderTest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


async def test_whole_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ASK)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


async def test_stream_gives_a_chunk_per_token_and_the_extension_last(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert pieces == ["The ", "capital ", "is ", "Paris."]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    factory = chunks[-1].model_extra["x_factory"]
    assert factory["route"] == "direct"
    assert factory["cache"]["result"] == "miss"
    assert all("x_factory" not in (c.model_extra or {}) for c in chunks[:-1])


async def test_sse_ids_count_up_and_the_stream_ends_with_done(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={**ASK, "stream": True})
    assert response.headers["x-accel-buffering"] == "no"
    ids = [int(line[4:]) for line in response.text.splitlines() if line.startswith("id: ")]
    assert ids == sorted(set(ids))
    assert response.text.endswith("data: [DONE]\n\n")


async def test_second_time_comes_from_the_exact_cache(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    first = await http.post("/v1/chat/completions", json=ASK)
    second = await http.post("/v1/chat/completions", json=ASK)
    assert first.headers["x-cache"] == "miss"
    assert second.headers["x-cache"] == "exact"
    assert second.json()["choices"] == first.json()["choices"]
    assert second.headers["x-trace-id"] != first.headers["x-trace-id"]
    assert gateway.replicas.calls == 1


async def test_meaning_is_marked_provisional(http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "What is the same?"}]})
    twin = [{"role": "user", "content": "please: what's the same"}]
    hit = await http.post("/v1/chat/completions", json={"model": "m", "messages": twin})
    assert hit.headers["x-cache"] == "semantic"
    assert float(hit.headers["x-cache-similarity"]) == 1.0
    assert hit.json()["x_factory"]["cache"]["provisional"] is True
    other = await http.post("/v1/chat/completions", json={"model": "m", "temperature": 0.5, "messages": twin})
    assert other.headers["x-cache"] == "miss"  # another scope


async def test_a_near_question_that_a_guard_objects_to_is_a_miss(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    for text in ("Are 2 the same?", "Are 3 the same?"):  # one vector for both
        reply = await http.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": text}]})
        assert reply.headers["x-cache"] == "miss"
    again = await http.post(
        "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "are 2 the same"}]}
    )
    assert again.headers["x-cache"] == "semantic", "the second neighbour is served when a guard objects to the first"
    assert gateway.replicas.calls == 2
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Are 2 the same?"},
    ]
    for messages in (talk, [*talk[:2], {"role": "user", "content": "are 2 the same"}]):
        reply = await http.post("/v1/chat/completions", json={"model": "m", "messages": messages})
        assert reply.headers["x-cache"] == "miss", "what follows earlier turns has its exact twin only"


@pytest.mark.parametrize(
    ("body", "headers", "cache", "calls"),
    [
        ({"x_cache": {"mode": "bypass"}}, {}, "bypass", 2),
        ({"x_cache": {"mode": "refresh"}}, {}, "miss", 2),
        ({}, {"Cache-Control": "no-store"}, "bypass", 2),
        ({}, {"Cache-Control": "no-cache"}, "miss", 2),
        ({"x_cache": {"mode": "only"}}, {}, "exact", 1),
    ],
)
async def test_cache_modes(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, body: dict[str, Any], headers: dict[str, str], cache: str, calls: int
) -> None:
    await http.post("/v1/chat/completions", json=ASK)
    again = await http.post("/v1/chat/completions", json={**ASK, **body}, headers=headers)
    assert again.headers["x-cache"] == cache
    assert gateway.replicas.calls == calls


async def test_only_from_cache_misses_with_404(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={**ASK, "x_cache": {"mode": "only"}})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "cache_miss"


async def test_key_replays_byte_for_byte(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await http.post("/v1/chat/completions", json={**ASK, "x_cache": {"mode": "bypass"}}, headers=headers)
    second = await http.post("/v1/chat/completions", json={**ASK, "x_cache": {"mode": "bypass"}}, headers=headers)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert gateway.replicas.calls == 1


async def test_key_with_another_body_is_refused(client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(**ASK, extra_headers={"Idempotency-Key": "k1"})
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await client.chat.completions.create(**{**ASK, "temperature": 0.1}, extra_headers={"Idempotency-Key": "k1"})
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_identical_requests_in_flight_share_one_execution(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        asks = [group.create_task(http.post("/v1/chat/completions", json=ASK)) for _ in range(20)]
        await until(lambda: gateway.replicas.calls >= 1)
        gateway.replicas.hold.set()
    answers = [task.result() for task in asks]
    assert gateway.replicas.calls == 1
    assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {TEXT}


async def test_error_before_the_first_token_has_its_own_status(client: openai.AsyncOpenAI, gateway: GatewayUnderTest) -> None:
    with pytest.raises(openai.BadRequestError, match="too long"):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "too long"}], stream=True)
    gateway.replicas.error = Overloaded("full", retry_after_s=3)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**ASK, stream=True)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120


async def test_broken_stream_never_looks_whole(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    gateway.replicas.error, gateway.replicas.break_after = UpstreamFailed("the replica died"), 2
    with pytest.raises(openai.APIError, match="replica died"):
        async for _ in await client.chat.completions.create(**ASK, stream=True):
            pass
    raw = await http.post("/v1/chat/completions", json={**ASK, "stream": True})
    assert "[DONE]" not in raw.text
    assert raw.text.count('"error"') == 1
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(**ASK)


async def test_failed_run_is_not_cached_and_runs_again(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.error = UpstreamFailed("gone")
    assert (await http.post("/v1/chat/completions", json=ASK)).status_code == 502
    gateway.replicas.error = None
    assert (await http.post("/v1/chat/completions", json=ASK)).json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_client_stops_the_engine(http: httpx.AsyncClient, gateway: GatewayUnderTest, stream: bool) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        ask = group.create_task(_ask_and_stay(http, {**ASK, "stream": stream}))
        await until(lambda: gateway.replicas.running == 1 and len(gateway.lifecycle.local_runs) == 1)
        trace_id = gateway.lifecycle.local_runs.leased()[0]
        ask.cancel()
    await until(lambda: gateway.replicas.running == 0)
    assert gateway.replicas.aborted == 1
    row = await _ended(gateway, trace_id)
    assert row.status is RunStatus.CANCELLED
    assert row.usage is not None
    assert row.usage["completion_tokens"] == 1  # the part that was used is recorded


async def test_one_of_two_readers_may_leave(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(_ask_and_stay(http, {**ASK, "stream": True}))
        await until(lambda: gateway.replicas.running == 1)
        staying = group.create_task(http.post("/v1/chat/completions", json=ASK))
        (trace_id,) = gateway.lifecycle.local_runs.leased()
        await until(lambda: gateway.lifecycle.readers.count(trace_id) == 2)
        leaving.cancel()
        await until(lambda: gateway.lifecycle.readers.count(trace_id) == 1)
        gateway.replicas.hold.set()
    assert staying.result().json()["choices"][0]["message"]["content"] == TEXT
    assert staying.result().headers["x-cache"] == "attached"


async def test_keyed_run_goes_on_without_readers(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    headers = {"Idempotency-Key": "stay"}
    async with asyncio.TaskGroup() as group:
        ask = group.create_task(_ask_and_stay(http, ASK, headers))
        await until(lambda: gateway.replicas.running == 1)
        ask.cancel()
    gateway.replicas.hold.set()
    await until(lambda: gateway.replicas.running == 0)
    again = await http.post("/v1/chat/completions", json=ASK, headers=headers)
    assert again.json()["choices"][0]["message"]["content"] == TEXT
    assert gateway.replicas.calls == 1


async def test_cancel_by_name_ends_the_stream_with_an_error(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
        trace_id = response.headers["x-trace-id"]
        cancelled = await http.post(f"/v1/runs/{trace_id}/cancel")
        assert cancelled.status_code == 202
        text = "".join([part async for part in response.aiter_text()])
    assert '"code":"cancelled"' in text
    assert "[DONE]" not in text
    assert (await http.get(f"/v1/runs/{trace_id}")).json()["status"] == "cancelled"
    assert (await http.post(f"/v1/runs/{trace_id}/cancel")).json()["status"] == "cancelled"


async def test_deadline_is_an_honest_end(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    response = await http.post("/v1/chat/completions", json={**ASK, "x_timeout_s": 0.2})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert gateway.replicas.running == 0


async def test_keepalive_while_the_model_is_silent() -> None:
    async with serve_gateway(keepalive_s=0.05) as gateway:
        gateway.replicas.hold = asyncio.Event()
        async with (
            httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False) as http,
            http.stream("POST", f"{gateway.url}/v1/chat/completions", json={**ASK, "stream": True}) as response,
        ):
            text = ""
            async for part in response.aiter_text():
                text += part
                if text.count(": keep-alive") >= 2:
                    gateway.replicas.hold.set()
    assert text.endswith("data: [DONE]\n\n")


async def test_the_openai_client_reads_on_over_keepalives() -> None:
    """Its decoder takes a blank line for an event once there was an id, whatever stands before it."""
    async with serve_gateway(keepalive_s=0.05) as gateway:
        gateway.replicas.hold = asyncio.Event()
        async with (
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as sdk,
            httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False) as http,
        ):
            stream = await sdk.chat.completions.create(**ASK, stream=True)
            # Reads the same run, and has begun later: what it has heard the other one was sent too.
            async with http.stream("POST", f"{gateway.url}/v1/chat/completions", json={**ASK, "stream": True}) as beside:
                text = ""
                async for part in beside.aiter_text():
                    text += part
                    if text.partition("id: ")[2].count(": keep-alive") >= 3:
                        gateway.replicas.hold.set()
            said = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    assert "".join(said) == "The capital is Paris."


async def test_events_of_a_run_resume_after_an_id(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    first = await http.post("/v1/chat/completions", json={**ASK, "stream": True})
    trace_id = first.headers["x-trace-id"]
    rest = await http.get(f"/v1/runs/{trace_id}/events", headers={"Last-Event-ID": "2"})
    pieces = [json.loads(line[6:]) for line in rest.text.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in pieces if c["choices"]) == "is Paris."
    assert rest.text.endswith("data: [DONE]\n\n")


async def _ask_and_stay(http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
    # Cancelling this closes the socket, as a client that is killed does.
    async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        async for _ in response.aiter_raw():
            pass


async def _ended(gateway: GatewayUnderTest, trace_id: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            row = await gateway.store.find(trace_id)
            if row is not None and row.status.terminal:
                return row
            await asyncio.sleep(0.005)


async def test_workflow_run_is_forgotten_when_it_ends_and_cancelled_when_its_reader_leaves(
    http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    cancelled: list[str] = []
    await gateway.bus.on_cancel(lambda trace_id, _: cancelled.append(trace_id))
    ask = {**ASK, "x_route": "workflow"}
    async with aclosing(gateway.queue.deliveries(limit=2)) as deliveries, asyncio.TaskGroup() as group:
        whole = group.create_task(http.post("/v1/chat/completions", json=ask))
        delivery = await anext(deliveries)
        publisher = await gateway.bus.open_run(delivery.run.trace_id)
        await publisher.emit(TokenEvent(text="draft", task="A"))
        await publisher.emit(TokenEvent(text="the answer"))
        await publisher.emit(FinishedEvent(reason="stop", winner="m"))
        await delivery.done()
        assert (await whole).json()["choices"][0]["message"]["content"] == "the answer"
        await until(lambda: gateway.lifecycle.readers.count(delivery.run.trace_id) == 0)
        assert cancelled == []

        leaving = group.create_task(_ask_and_stay(http, {**ask, "seed": 1}))
        left = await anext(deliveries)
        leaving.cancel()
        await until(lambda: cancelled == [left.run.trace_id])


async def test_more_than_the_limit_is_refused_and_the_accepted_are_answered() -> None:
    async with serve_gateway(gateway_max_ongoing_requests=3) as gateway:
        gateway.replicas.hold = asyncio.Event()
        async with gateway.http() as http:
            async with asyncio.TaskGroup() as group:
                accepted = [group.create_task(http.post("/v1/chat/completions", json={**ASK, "seed": n})) for n in range(3)]
                await until(lambda: gateway.replicas.running == 3)
                refused = await http.post("/v1/chat/completions", json={**ASK, "seed": 9})
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "overloaded"
                assert 1 <= int(refused.headers["retry-after"]) <= 120
                assert (await http.get("/healthz")).status_code == 200
                gateway.replicas.hold.set()
            assert {task.result().status_code for task in accepted} == {200}
            assert (await http.post("/v1/chat/completions", json={**ASK, "seed": 9})).status_code == 200
