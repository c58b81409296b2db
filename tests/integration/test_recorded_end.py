"""A stream that begins live and ends with the record: one stream to its reader, whoever says its end."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest

from serve_app.answers import succeeded
from serve_app.bus.audience import NatsAudience
from serve_app.events import ChoiceEnd, DebateReport, EventBody, ProgressEvent, RoleEvent, RunEvent, TokenEvent, Usage
from serve_app.lifecycle.sweep import tell_end
from serve_app.ports import RunRecord
from serve_app.runs import Answer, Run
from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from tests.contracts.conftest import NatsServer, own_nats  # noqa: F401 - a fixture
from tests.fault.worker_process import Surroundings
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway

WAIT_S = 40.0
TEXT = "Paris, all in all."
DRAFTS = ("Ly", "on", "Pa", "ris")
ASK: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "x_route": "workflow",
    "stream": True,
    "stream_options": {"include_usage": True},
}


@dataclass
class Place:
    """A gateway, and the worker's side of the bus and the log, in whose role the test speaks."""

    gateway: GatewayUnderTest
    http: httpx.AsyncClient
    worker: Surroundings

    async def taken(self) -> Run:
        """The run that the gateway put into the queue."""
        async with asyncio.timeout(WAIT_S):
            deliveries = self.worker.queue.deliveries(limit=1)
            delivery = await anext(deliveries)
            await delivery.done()
            await deliveries.aclose()
            return delivery.run

    async def record(self, run: Run, debate: DebateReport | None = None) -> RunRecord:
        """The answer reaches the log; `finished` is not said."""
        message = {"role": "assistant", "content": TEXT}
        ends, usage = (ChoiceEnd(finish_reason="stop"),), Usage(prompt_tokens=2, completion_tokens=5, total_tokens=7)
        answer = Answer(model="debate", messages=(message,), ends=ends, usage=usage, winner="m", debate=debate)
        assert await self.worker.store.settle(run, succeeded(answer))
        row = await self.worker.store.find(run.trace_id)
        assert row is not None
        return row

    async def resume(self, trace_id: str, after: int) -> list[tuple[int | None, str]]:
        """The frames of the stream after event `after`, to its end."""
        response = await self.http.get(f"/v1/runs/{trace_id}/events", headers={"Last-Event-ID": str(after)})
        assert response.status_code == 200, response.text
        return frames(response.text)


@pytest.fixture
async def place(postgres_dsn: str, own_nats: NatsServer, tmp_path: Any) -> AsyncIterator[Place]:  # noqa: F811 - the fixture
    # A third of the lease is what a reader waits in silence before it asks the log.
    settings = Settings(config="simulated", state_dir=tmp_path, postgres_dsn=postgres_dsn, nats_url=own_nats.url, lease_s=1.5)
    async with AsyncExitStack() as stack:
        here, worker = Surroundings(settings, "gateway"), Surroundings(settings, "worker")
        for around in (here, worker):
            await around.open(stack)
        parts = {
            "store": here.store,
            "cache": PostgresAnswerCache(here.pool),
            "bus": here.bus,
            "queue": here.queue,
            "audience": NatsAudience(here.nats),
        }
        gateway = await stack.enter_async_context(serve_gateway(parts, lease_s=1.5))
        http = gateway.http()
        yield Place(gateway, await stack.enter_async_context(http), worker)


def frames(stream: str) -> list[tuple[int | None, str]]:
    """Each frame of a stream: its id, and its data without what tells readers apart (`x_factory.cache`)."""
    found = []
    for block in stream.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if lines:
            told = re.sub(r'"result":"(miss|attached)"', '"result":"-"', lines["data"])
            found.append((int(lines["id"]) if "id" in lines else None, told))
    return found


def check_whole(told: list[tuple[int | None, str]]) -> list[int]:
    """One stream without loss and without doubling: everything once, in order, ids that rise. Returns the ids."""
    assert [data for _, data in told].count("[DONE]") == 1
    assert told[-1][1] == "[DONE]"
    chunks = [json.loads(data) for _, data in told[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXT
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "".join(DRAFTS)
    assert sum("role" in delta for delta in deltas) == 1
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]] == ["stop"]
    ids = [number for number, _ in told if number is not None]
    assert all(earlier < later for earlier, later in pairwise(ids)), ids
    return ids


async def live_part(place: Place, run: Run) -> None:
    """What a worker says before it dies between the record of the answer and the word of it."""
    publisher = await place.worker.bus.open_run(run.trace_id)
    drafts = [TokenEvent(text=text, task="A") for text in DRAFTS]
    said: list[EventBody] = [RoleEvent(), ProgressEvent(step="argue", done=0, of=2), *drafts]
    for body in said:
        await publisher.emit(body)
    assert await publisher.delivered()


async def test_ids_go_on_from_the_live_part_into_the_record(place: Place) -> None:
    """The worker died between the record and `finished`: the reader gets the recorded end, and so does who resumes."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(place.http.post("/v1/chat/completions", json=ASK))
        run = await place.taken()
        await live_part(place, run)
        row = await place.record(run)
    told = frames(reading.result().text)
    ids = check_whole(told)
    for after in ids:  # before anybody has said the end on the bus
        rest = await place.resume(run.trace_id, after)
        assert rest == after_id(told, after), f"resumed after {after}"
    await tell_end(place.worker.store, place.worker.bus, row)
    for after in ids:
        rest = await place.resume(run.trace_id, after)
        assert rest == after_id(told, after), f"resumed after {after}, when the end was said"


async def test_a_reader_that_joins_after_the_record_reads_one_stream(place: Place) -> None:
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(place.http.post("/v1/chat/completions", json=ASK))
        run = await place.taken()
        await live_part(place, run)
        row = await place.record(run)
        await tell_end(place.worker.store, place.worker.bus, row)
    ids = check_whole(frames(reading.result().text))
    late = frames((await place.http.get(f"/v1/runs/{run.trace_id}/events")).text)
    assert check_whole(late) == ids


async def test_an_answer_that_streamed_while_it_was_merged_is_not_told_again(place: Place) -> None:
    """A progress is the last that its worker said before it died between the record and `finished`."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(place.http.post("/v1/chat/completions", json=ASK))
        run = await place.taken()
        await live_part(place, run)
        publisher = await place.worker.bus.open_run(run.trace_id, resume=True)
        await publisher.emit(ProgressEvent(step="synthesize", done=0, of=1))
        spoken = [await publisher.emit(TokenEvent(text=word)) for word in re.findall(r"\S+\s*", TEXT)]
        await publisher.emit(ProgressEvent(step="synthesize", done=1, of=1))
        assert await publisher.delivered()
        row = await place.record(run, DebateReport(strategy="synthesize", rounds=1, stop_reason="synthesized"))
        cut = await place.resume(run.trace_id, spoken[0].seq)  # nobody has said the end yet
        await tell_end(place.worker.store, place.worker.bus, row)
    assert content(cut) in TEXT.removeprefix(spoken_text(spoken[:1]))
    assert content(frames(reading.result().text)) == TEXT
    check_whole(frames((await place.http.get(f"/v1/runs/{run.trace_id}/events")).text))


def spoken_text(events: list[RunEvent]) -> str:
    return "".join(event.body.text for event in events if isinstance(event.body, TokenEvent))


def content(told: list[tuple[int | None, str]]) -> str:
    """The answer in these frames."""
    chunks = [json.loads(data) for _, data in told if data != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))


def after_id(told: list[tuple[int | None, str]], after: int) -> list[tuple[int | None, str]]:
    """The frames that follow the one with this id."""
    return told[1 + next(place for place, (number, _) in enumerate(told) if number == after) :]
