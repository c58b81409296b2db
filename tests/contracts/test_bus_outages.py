"""What the bus does while NATS is away, and when it comes back. The server is a real one that gets killed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from serve_app.bus.streams import ensure_event_stream
from serve_app.errors import Unavailable
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.runs import new_trace_id
from tests.contracts.conftest import Kind, NatsServer, Stage, stage_of, until
from tests.contracts.test_bus_events import END, emit, read
from tests.contracts.test_bus_queue import a_run, taken


@pytest.fixture(params=["core", "jetstream"])
async def mortal(request: pytest.FixtureRequest, own_nats: NatsServer) -> AsyncIterator[Stage]:
    kind: Kind = request.param
    async with stage_of(kind, own_nats.url) as made:
        yield made
        for connection in made.connections:
            await connection.close()
        own_nats.kill()
        own_nats.start()  # the stage clears up on a server that lives


async def test_local_readers_outlive_nats_and_new_runs_work_when_it_is_back(mortal: Stage, own_nats: NatsServer) -> None:
    here, there, trace_id = await mortal.bus(), await mortal.bus(), new_trace_id()
    heard: list[str] = []
    await there.on_cancel(lambda trace_id, reason: heard.append(trace_id))
    publisher = await here.open_run(trace_id)
    standing = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        local = group.create_task(read(here, trace_id))
        remote = group.create_task(failure(there, trace_id, standing))
        await standing.wait()
        await emit(publisher, range(20))
        own_nats.kill()
        await until(lambda: not here._connection.connected, what="noticing that NATS has gone")
        began = time.monotonic()
        await emit(publisher, range(20, 1000))
        await publisher.emit(END)
        assert time.monotonic() - began < 20  # 980 events: a wait for each would be minutes
        with pytest.raises(Unavailable, match="away"):
            await here.ping()
        with pytest.raises(Unavailable, match="away"):
            await here.publish_cancel(trace_id, "x")
    assert local.result() == list(range(1001))
    assert isinstance(remote.result(), Unavailable)

    own_nats.start()
    for connection in mortal.connections:
        await connection.wait_connected(30)
    trace_id, standing = new_trace_id(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        later = group.create_task(read(there, trace_id, standing=standing))
        await standing.wait()
        publisher = await here.open_run(trace_id)
        await emit(publisher, range(20))
        await publisher.emit(END)
    assert later.result() == list(range(21))
    await here.publish_cancel("again", "x")
    await until(lambda: heard == ["again"], what="a cancel message after the outage")


async def failure(bus: object, trace_id: str, standing: asyncio.Event) -> Exception | None:
    try:
        await read(bus, trace_id, standing=standing)
    except Unavailable as error:
        return error
    return None


async def test_a_remote_reader_learns_that_events_were_lost(own_nats: NatsServer) -> None:
    async with stage_of("jetstream", own_nats.url) as stage:
        here, there, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
        publisher = await here.open_run(trace_id)
        await emit(publisher, range(10))
        async with there.subscribe(trace_id) as events:
            assert [(await anext(events)).seq for _ in range(10)] == list(range(10))
            own_nats.kill()
            await until(lambda: not here._connection.connected, what="noticing that NATS has gone")
            await publisher.emit(TokenEvent(text="10"))
            own_nats.start()
            for connection in stage.connections:
                await connection.wait_connected(30)
            await publisher.emit(TokenEvent(text="11"))
            async with asyncio.timeout(30):
                with pytest.raises(Unavailable):
                    await anext(events)


async def test_silence_after_a_loss_ends_the_reader(own_nats: NatsServer) -> None:
    async with stage_of("jetstream", own_nats.url) as stage:
        here, there, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
        publisher = await here.open_run(trace_id)
        await emit(publisher, range(1))
        async with there.subscribe(trace_id) as events:
            await anext(events)
            own_nats.kill()
            await until(lambda: not here._connection.connected, what="noticing that NATS has gone")
            await publisher.emit(FinishedEvent(reason="stop"))  # nobody elsewhere will ever hear of it
            own_nats.start()
            async with asyncio.timeout(30):
                with pytest.raises(Unavailable):
                    await anext(events)
        for connection in stage.connections:
            await connection.wait_connected(30)


async def test_starting_while_nats_is_away(own_nats: NatsServer) -> None:
    own_nats.kill()
    stage = Stage("jetstream", own_nats.url)
    connection = await stage.connection()
    connection.on_connect(ensure_event_stream(stage.settings))
    connection.start()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="away"):
        await connection.flush()
    with pytest.raises(Unavailable, match="away"):
        await connection.publish("evt.chat.x", b"x")
    assert time.monotonic() - began < 10
    own_nats.start()
    await connection.wait_connected(30)
    await connection.flush()
    own_nats.kill()
    await until(lambda: not connection.connected, what="noticing that NATS has gone")
    began = time.monotonic()
    await connection.close()
    assert time.monotonic() - began < 10
    await until(lambda: len(asyncio.all_tasks()) == 1, what="the end of every task")


async def test_a_queued_run_outlives_the_server(own_nats: NatsServer) -> None:
    async with stage_of("jetstream", own_nats.url) as stage:
        gateway, worker = await stage.queue(), await stage.queue()
        run = a_run()
        await gateway.submit(run)
        own_nats.kill()
        await until(lambda: not gateway._connection.connected, what="noticing that NATS has gone")
        with pytest.raises(Unavailable):
            await gateway.submit(a_run())
        async with aclosing(worker.deliveries(limit=2)) as runs:
            waiting = asyncio.ensure_future(anext(runs))
            own_nats.start()
            async with asyncio.timeout(60):
                delivery = await waiting
            assert delivery.run == run
            await delivery.done()
            second = a_run()
            await gateway._connection.wait_connected(30)
            await gateway.submit(second)
            assert (await taken(runs)).run == second
