"""The sweeper on every bus: an abandoned run ends once, its readers hear of it, and healthy runs are left alone."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from nats.aio.msg import Msg

from serve_app.bus.connection import NatsConnection
from serve_app.bus.event_bus import NatsEventBus
from serve_app.bus.run_queue import NatsRunQueue
from serve_app.bus.streams import ensure_event_stream, event_subject
from serve_app.errors import Unavailable
from serve_app.events import FinishedEvent, RoleEvent, TokenEvent, decode
from serve_app.lifecycle.settle import settle
from serve_app.lifecycle.sweep import Sweeper, tell_end, waiting_lease_s
from serve_app.ports import RunRecord
from serve_app.runs import RunStatus
from serve_app.store.memory import InMemoryRunStore
from serve_app.tasks import TaskOwner
from tests.contracts.conftest import FAST, NatsServer, Stage, bus_settings, until
from tests.contracts.store_cases import OVER, a_run, an_answer, succeeded

WAIT_S = 30.0


class Store(InMemoryRunStore):
    """A log that may be away."""

    away = False

    async def end_abandoned(self, *, limit: int, workflow_overdue_s: float = 0) -> list[RunRecord]:
        if self.away:
            raise Unavailable("Postgres is away")
        return await super().end_abandoned(limit=limit, workflow_overdue_s=workflow_overdue_s)


def a_sweeper(store: InMemoryRunStore, bus: Any, queue: Any, *, watched: bool = True, lease_s: float = 30) -> Sweeper:
    """A sweeper; `watched`: as one that has been there for long."""
    settings = bus_settings(lease_s=lease_s)
    sweeper = Sweeper(lambda: settings, store=store, bus=bus, queue=queue)
    if watched:
        sweeper._owners_since = sweeper._queue_since = 0.0
    return sweeper


async def test_readers_of_an_abandoned_run_get_an_honest_end(stage: Stage) -> None:
    store, gateway, follower, worker = InMemoryRunStore(), await stage.bus(), await stage.bus(), await stage.bus()
    run = a_run()
    await store.claim(run, lease_s=OVER)
    async with asyncio.timeout(WAIT_S), follower.subscribe(run.trace_id) as events:
        await (await gateway.open_run(run.trace_id)).emit(TokenEvent(text="half an ans"))
        assert (await anext(events)).body == TokenEvent(text="half an ans")
        assert await a_sweeper(store, worker, await stage.queue()).sweep() == 1
        if stage.kind == "core":  # nobody knows the last seq there
            with pytest.raises(Unavailable, match="began anew"):
                await anext(events)
        else:
            end = await anext(events)
            assert isinstance(end.body, FinishedEvent)
            assert (end.seq, end.body.reason) == (1, "error")
            assert (end.body.error or {})["code"] == "unavailable"
            assert [event async for event in events] == []


async def test_an_end_is_told_once(jetstream_stage: Stage) -> None:
    store, owner = InMemoryRunStore(), await jetstream_stage.bus()
    run, told = a_run(), []

    async def hear(message: Msg) -> None:
        told.append(type(decode(message.data).body))

    tap = await jetstream_stage.connection("tap")
    await tap.subscribe(event_subject(run.trace_id), hear)
    await tap.flush()
    await store.claim(run, lease_s=30)
    publisher = await owner.open_run(run.trace_id)
    await publisher.emit(RoleEvent())
    await settle(store, publisher, run, succeeded(an_answer()))
    record = await store.find(run.trace_id)
    assert record is not None
    # Its worker died after `finished`, or just before it: whoever looks after the run tells what is missing.
    for _ in range(2):
        await tell_end(store, await jetstream_stage.bus(), record)
    other = replace(record, trace_id=a_run().trace_id)
    bus = await jetstream_stage.bus()
    await tell_end(store, bus, other)
    async with asyncio.timeout(WAIT_S), bus.subscribe(other.trace_id) as events:
        *said, end = [event.body async for event in events]
    # Nothing of this one was heard: its reader gets the whole recorded answer, not an empty one.
    text = "".join(body.text for body in said if isinstance(body, TokenEvent) and body.index == 0)
    assert record.answer is not None
    assert text == record.answer.text
    assert isinstance(end, FinishedEvent)
    assert (end.reason, end.winner) == ("stop", "m")
    await tap.flush()
    await until(lambda: len(told) >= 2)
    assert told == [RoleEvent, FinishedEvent]


async def test_an_end_that_may_have_been_said_before_nats_lost_it_is_not_said_again(own_nats: NatsServer) -> None:
    """Its worker and NATS died at about the same time: nobody knows whether `finished` was heard. The log has the end."""
    store, run = InMemoryRunStore(), a_run()
    connection = NatsConnection(own_nats.url, "worker", reconnect_wait_s=0.1)
    connection.on_connect(ensure_event_stream(bus_settings()))
    bus = NatsEventBus(connection, mode="jetstream", limits=FAST)
    try:
        await connection.wait_connected(WAIT_S)
        await store.claim(run, lease_s=30)
        await (await bus.open_run(run.trace_id)).emit(RoleEvent())
        await store.settle(run, succeeded(an_answer()))
        own_nats.kill()
        await connection.close()
        own_nats.start()
        connection = NatsConnection(own_nats.url, "next worker", reconnect_wait_s=0.1)
        connection.on_connect(ensure_event_stream(bus_settings()))
        bus = NatsEventBus(connection, mode="jetstream", limits=FAST)
        await connection.wait_connected(WAIT_S)
        record = await store.find(run.trace_id)
        assert record is not None
        await tell_end(store, bus, record, perhaps_said=True)
        assert await bus.last_event(run.trace_id) is None
        noted = await store.find(run.trace_id)
        assert noted is not None
        assert noted.told, "nobody need look again"
        await tell_end(store, bus, record)  # the sweeper's own end was never said
        last = await bus.last_event(run.trace_id)
        assert last is not None
        assert isinstance(last.body, FinishedEvent)
    finally:
        await connection.close()


async def test_a_run_is_ended_while_nats_is_away_and_told_when_it_is_back(own_nats: NatsServer) -> None:
    store, run = InMemoryRunStore(), a_run()
    connection = NatsConnection(own_nats.url, "sweeper", reconnect_wait_s=0.1)
    connection.on_connect(ensure_event_stream(bus_settings()))
    bus, queue = NatsEventBus(connection, mode="jetstream", limits=FAST), NatsRunQueue(connection, bus_settings())
    await connection.wait_connected(WAIT_S)
    sweeper = a_sweeper(store, bus, queue)
    try:
        own_nats.kill()
        await store.claim(run, lease_s=OVER)
        assert await sweeper.sweep() == 1
        record = await store.find(run.trace_id)
        assert record is not None
        assert record.status is RunStatus.FAILED
        own_nats.start()
        await connection.wait_connected(WAIT_S)
        assert await sweeper.sweep() == 0
        async with asyncio.timeout(WAIT_S), bus.subscribe(run.trace_id) as events:
            assert [type(event.body) async for event in events] == [FinishedEvent]
    finally:
        await connection.close()


async def test_the_end_of_a_sweeper_that_died_before_it_told_is_told_by_the_next(jetstream_stage: Stage) -> None:
    store, run, lease_s = InMemoryRunStore(), a_run(), 0.1
    bus, queue = await jetstream_stage.bus(), await jetstream_stage.queue()
    await store.claim(run, lease_s=OVER)
    await (await (await jetstream_stage.bus()).open_run(run.trace_id)).emit(RoleEvent())
    await store.end_abandoned(limit=1)  # by a sweeper that was killed then
    heirs = [a_sweeper(store, bus, queue, lease_s=lease_s), a_sweeper(store, await jetstream_stage.bus(), queue, lease_s=lease_s)]
    async with asyncio.timeout(WAIT_S), bus.subscribe(run.trace_id) as events:
        assert isinstance((await anext(events)).body, RoleEvent)
        while not (record := await store.find(run.trace_id)) or not record.told:
            for heir in heirs:
                await heir.sweep()
            await asyncio.sleep(lease_s / 4)
        assert [type(event.body) async for event in events] == [FinishedEvent]
    assert await store.take_untold(older_than_s=-1, limit=1) == []


async def test_workflow_runs_are_left_to_the_queue_after_nats_was_away(own_nats: NatsServer) -> None:
    store, run = InMemoryRunStore(), a_run(route="workflow")
    connection = NatsConnection(own_nats.url, "sweeper", reconnect_wait_s=0.1)
    bus, queue = NatsEventBus(connection, mode="core", limits=FAST), NatsRunQueue(connection, bus_settings())
    await connection.wait_connected(WAIT_S)
    sweeper = a_sweeper(store, bus, queue)
    try:
        await store.claim(run, lease_s=OVER)
        own_nats.kill()
        assert await sweeper.sweep() == 0
        own_nats.start()
        await connection.wait_connected(WAIT_S)
        assert await sweeper.sweep() == 0, "the queue had no time to bring the run again"
        sweeper._queue_since = 0.0
        assert await sweeper.sweep() == 1
    finally:
        await connection.close()


async def test_workflow_runs_are_left_to_a_queue_that_still_holds_some(jetstream_stage: Stage) -> None:
    """No worker for longer than the queue's patience: its message is still there, and the next worker gets it."""
    store, bus, queue, worker = InMemoryRunStore(), await jetstream_stage.bus(), *await two_queues(jetstream_stage)
    run, forlorn = a_run("1", route="workflow"), a_run("2", route="workflow")
    await store.claim(run, lease_s=OVER)
    await queue.submit(run)
    sweeper = a_sweeper(store, bus, queue)
    await until_backlog(queue, 1)
    assert await sweeper.sweep() == 0, "an accepted run was ended although a worker would have got it"
    await store.claim(forlorn, lease_s=-bus_settings().request_timeout_s - 1)
    assert await sweeper.sweep() == 1, "nothing stays running for ever"
    async with aclosing(worker.deliveries(limit=1)) as deliveries, asyncio.timeout(WAIT_S):
        delivery = await anext(deliveries)
        assert delivery.run == run
        assert await sweeper.sweep() == 0, "it was taken, but not ended"
        await delivery.done()
    await until_backlog(queue, 0)
    assert await sweeper.sweep() == 1


async def test_how_long_a_forlorn_run_is_left_to_the_queue_is_read_anew(stage: Stage) -> None:
    store, settings = InMemoryRunStore(), [bus_settings(request_timeout_s=600)]
    sweeper = Sweeper(lambda: settings[-1], store=store, bus=await stage.bus(), queue=await stage.queue())
    sweeper._owners_since = 0.0
    await store.claim(a_run(route="workflow"), lease_s=-100)
    assert await sweeper.sweep() == 0
    settings.append(bus_settings(request_timeout_s=50))
    assert await sweeper.sweep() == 1


async def two_queues(stage: Stage) -> tuple[Any, Any]:
    """Of a gateway and of a worker."""
    return await stage.queue(), await stage.queue()


async def until_backlog(queue: Any, count: int) -> None:
    """The server counts a moment later."""
    async with asyncio.timeout(WAIT_S):
        while await queue.backlog() != count:
            await asyncio.sleep(0.01)


async def test_readers_of_a_cancelled_run_whose_owner_fell_silent_hear_of_the_cancel(jetstream_stage: Stage) -> None:
    store, bus, run = InMemoryRunStore(), await jetstream_stage.bus(), a_run(route="workflow")
    await store.claim(run, lease_s=OVER)
    await store.request_cancel(run.trace_id, "enough")
    assert await a_sweeper(store, bus, await jetstream_stage.queue()).sweep() == 1
    async with asyncio.timeout(WAIT_S), bus.subscribe(run.trace_id) as events:
        (end,) = [event.body async for event in events]
    assert isinstance(end, FinishedEvent)
    assert (end.reason, (end.error or {})["message"]) == ("cancelled", "the run was cancelled: enough")


async def test_leases_mean_nothing_to_one_who_just_came_or_saw_postgres_away(stage: Stage) -> None:
    store, bus, queue = Store(), await stage.bus(), await stage.queue()
    await store.claim(a_run(), lease_s=OVER)
    fresh = a_sweeper(store, bus, queue, watched=False)
    assert fresh.watching
    assert await fresh.sweep() == 0, "it may be the owners that could not extend their leases"
    old = a_sweeper(store, bus, queue)
    store.away = True
    assert await old.sweep() == 0
    store.away = False
    assert await old.sweep() == 0, "Postgres is just back: the owners had no time to extend"
    stopped = a_sweeper(store, bus, queue)
    stopped._swept_at -= 3600
    assert await stopped.sweep() == 0, "it stood still, and so may have the owners"


async def test_the_loop_ends_a_run_once_it_has_watched_for_a_lease(stage: Stage) -> None:
    store, bus, run = InMemoryRunStore(), await stage.bus(), a_run()
    await store.claim(run, lease_s=OVER)
    owner = TaskOwner()
    sweeper = a_sweeper(store, bus, await stage.queue(), watched=False, lease_s=0.3)
    owner.spawn(sweeper.run(), name="sweep")
    try:
        async with asyncio.timeout(WAIT_S), bus.subscribe(run.trace_id) as events:
            assert [type(event.body) async for event in events] == [FinishedEvent]
    finally:
        await owner.close()


async def test_one_who_lost_its_run_publishes_nothing_and_its_own_readers_end(stage: Stage) -> None:
    """A gateway that stood still: its run was ended meanwhile."""
    store, bus, run = InMemoryRunStore(), await stage.bus(), a_run()
    await store.claim(run, lease_s=OVER)
    publisher = await bus.open_run(run.trace_id)
    async with asyncio.timeout(WAIT_S), bus.subscribe(run.trace_id) as events:
        await publisher.emit(TokenEvent(text="x"))
        assert (await anext(events)).seq == 0
        await store.end_abandoned(limit=1)
        assert not await settle(store, publisher, run, succeeded())
        with pytest.raises(Unavailable, match="goes on in another process"):
            await anext(events)
    with pytest.raises(ValueError, match="goes on elsewhere"):
        await publisher.emit(TokenEvent(text="late"))


def test_a_waiting_run_is_held_past_its_deadline() -> None:
    assert waiting_lease_s(a_run(), 30) == pytest.approx(90, abs=1)
    assert waiting_lease_s(a_run(deadline=0.0), 30) == 30
