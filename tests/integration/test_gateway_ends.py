"""Every reader gets an end, whoever fails: lost owners, lost events, deadlines, callers that leave early."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.errors import Unavailable
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.ports import Claim
from serve_app.runs import Outcome, Run, RunStatus
from serve_app.store.memory import InMemoryRunStore
from tests.integration.gateway_server import GatewayUnderTest, HashEmbedder, serve_gateway, until

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
TEXT = "The capital is Paris."


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway(lease_s=0.6) as server:
        yield server


async def test_workflow_without_a_worker_ends_at_its_deadline(http: httpx.AsyncClient) -> None:
    begun = time.monotonic()
    response = await http.post("/v1/chat/completions", json={**ASK, "x_route": "workflow", "x_timeout_s": 0.3}, timeout=15)
    assert response.status_code in (502, 503, 504)  # the reader's own deadline, or the log saying that nobody has the run
    assert time.monotonic() - begun < 10


async def test_attached_reader_keeps_its_own_deadline(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.replicas.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(http.post("/v1/chat/completions", json=ASK))
        await until(lambda: gateway.replicas.running == 1)
        attached = await http.post("/v1/chat/completions", json={**ASK, "x_timeout_s": 0.3})
        assert attached.status_code == 504
        gateway.replicas.hold.set()
    assert leader.result().status_code == 200


async def test_reader_of_a_run_whose_owner_died_gets_an_error(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    """Attached to a row that says running, whose lease nobody extends."""
    body = {**ASK, "x_route": "workflow", "stream": True}
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(http.post("/v1/chat/completions", json=body))
        await until(lambda: gateway.store._rows)
        (place,) = gateway.store._rows
        gateway.store._rows[place] = replace(gateway.store._rows[place], lease_until=time.time() - 1)
    assert waiting.result().status_code == 503
    assert "send the request again" in waiting.result().json()["error"]["message"]


async def test_lost_finished_is_made_good_from_the_log(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    """The worker committed and died before it could say so: a reader that has nothing yet gets the recorded answer."""
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(http.post("/v1/chat/completions", json={**ASK, "x_route": "workflow"}))
        await until(lambda: gateway.store._rows)
        (row,) = gateway.store._rows.values()
        done = await http.post("/v1/chat/completions", json=ASK)
        answer = next(r.answer for r in gateway.store._rows.values() if r.answer is not None)
        place = gateway.store._keys[row.trace_id]
        gateway.store._rows[place] = replace(row, status=RunStatus.SUCCEEDED, answer=answer)
    assert done.status_code == 200
    assert waiting.result().json()["choices"][0]["message"]["content"] == TEXT


async def test_half_read_answer_whose_end_is_lost_never_looks_whole(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    body = {**ASK, "x_route": "workflow", "stream": True}
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(http.post("/v1/chat/completions", json=body))
        await until(lambda: gateway.store._rows)
        (row,) = gateway.store._rows.values()
        publisher = await gateway.bus.open_run(row.trace_id)
        await publisher.emit(TokenEvent(text="The "))
        await http.post("/v1/chat/completions", json=ASK)
        answer = next(r.answer for r in gateway.store._rows.values() if r.answer is not None)
        gateway.store._rows[gateway.store._keys[row.trace_id]] = replace(row, status=RunStatus.SUCCEEDED, answer=answer)
    text = waiting.result().text
    assert '"error"' in text
    assert "[DONE]" not in text


async def test_caller_that_leaves_while_the_key_is_claimed_leaves_no_running_row() -> None:
    class SlowClaim(InMemoryRunStore):
        claimed = asyncio.Event()

        async def claim(self, run: Run, *, lease_s: float) -> Claim:
            claim = await super().claim(run, lease_s=lease_s)
            self.claimed.set()
            await asyncio.sleep(0.2)  # the reply of the database is on its way
            return claim

    store = SlowClaim()
    async with serve_gateway({"store": store}) as gateway:
        gateway.replicas.hold = asyncio.Event()
        async with gateway.http() as http:
            leaving = asyncio.ensure_future(http.post("/v1/chat/completions", json=ASK))
            await asyncio.wait_for(store.claimed.wait(), 30)
            leaving.cancel()
            await asyncio.wait({leaving})
        await until(lambda: all(row.status.terminal for row in store._rows.values()))
        assert gateway.replicas.running == 0


async def test_streaming_client_that_leaves_before_the_first_event_is_noticed(gateway: GatewayUnderTest) -> None:
    cancelled: list[str] = []
    await gateway.bus.on_cancel(lambda trace_id, _: cancelled.append(trace_id))
    async with gateway.http() as http:
        leaving = asyncio.ensure_future(http.post("/v1/chat/completions", json={**ASK, "x_route": "workflow", "stream": True}))
        await until(lambda: gateway.store._rows)
        leaving.cancel()
        await asyncio.wait({leaving})
    await until(lambda: len(cancelled) == 1)


async def test_broken_embedder_costs_a_hit_not_the_answer() -> None:
    class Broken(HashEmbedder):
        async def embed(self, texts: Sequence[str], *, unit: bool = True) -> list[list[float]]:
            raise RuntimeError("the model file is gone")

    async with serve_gateway() as gateway:
        gateway.lifecycle.embedder = Broken()
        async with gateway.http() as http:
            response = await http.post("/v1/chat/completions", json=ASK)
    assert response.status_code == 200
    assert response.headers["x-cache"] == "miss"


async def test_resume_after_the_last_event_gives_only_done(http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/chat/completions", json={**ASK, "stream": True})
    trace_id = first.headers["x-trace-id"]
    last = [line for line in first.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
    rest = await http.get(f"/v1/runs/{trace_id}/events", headers={"Last-Event-ID": last})
    assert rest.status_code == 200
    assert rest.text == "data: [DONE]\n\n"


@pytest.mark.parametrize("after", ["-5", "1_0", "٣", "x", "9" * 30])
async def test_resume_after_nonsense_is_refused(http: httpx.AsyncClient, after: str) -> None:
    first = await http.post("/v1/chat/completions", json={**ASK, "stream": True})
    response = await http.get(f"/v1/runs/{first.headers['x-trace-id']}/events", params={"after": after})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "after"


async def test_events_of_a_run_that_are_gone_come_from_the_record(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    first = await http.post("/v1/chat/completions", json=ASK)
    trace_id = first.headers["x-trace-id"]
    gateway.bus._logs._finished.clear()
    again = await http.get(f"/v1/runs/{trace_id}/events")
    assert TEXT in again.text
    assert again.text.endswith("data: [DONE]\n\n")
    assert (await http.get(f"/v1/runs/{trace_id}/events?after=1")).status_code == 404


async def test_finished_is_published_once_when_a_workflow_ends_normally(
    http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(http.post("/v1/chat/completions", json={**ASK, "x_route": "workflow"}))
        await until(lambda: gateway.store._rows)
        (row,) = gateway.store._rows.values()
        publisher = await gateway.bus.open_run(row.trace_id)
        await publisher.emit(TokenEvent(text="done"))
        await publisher.emit(FinishedEvent(reason="stop"))
    assert waiting.result().json()["choices"][0]["message"]["content"] == "done"


async def test_an_end_that_could_not_be_recorded_is_recorded_later_and_a_bad_one_holds_up_nothing() -> None:
    class Away(InMemoryRunStore):
        away, broken = True, ""

        async def settle(self, run: Run, outcome: Outcome) -> bool:
            if self.away:
                raise Unavailable("Postgres is away")
            if run.trace_id == self.broken:
                raise ValueError("cannot be recorded")
            return await super().settle(run, outcome)

    store = Away()
    async with serve_gateway({"store": store}, lease_s=0.9) as gateway:
        async with gateway.http() as http:
            first, second = await asyncio.gather(
                *(http.post("/v1/chat/completions", json={**ASK, "seed": seed}) for seed in range(2))
            )
        assert (first.status_code, second.status_code) == (200, 200)
        store.broken, store.away = first.headers["x-trace-id"], False
        trace_id = second.headers["x-trace-id"]
        await until(lambda: store._rows[store._keys[trace_id]].status is RunStatus.SUCCEEDED)
