"""The contract of EventBus, on the in-memory double, on core NATS and on JetStream."""

import asyncio
from typing import Any

import pytest

from serve_app.errors import NotFound, Overloaded, Unavailable
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.runs import new_trace_id
from tests.contracts.conftest import BUFFER, Stage, until

END = FinishedEvent(reason="stop")


# What mode core does not promise is not asked of it; the reason stands beside each mark.
keeps_history = pytest.mark.parametrize("stage", ["memory", "jetstream"], indirect=True)


async def emit(publisher: Any, texts: range) -> None:
    for n in texts:
        await publisher.emit(TokenEvent(text=str(n)))


async def read(
    bus: Any, trace_id: str, after: int = -1, standing: asyncio.Event | None = None, into: list[int] | None = None
) -> list[int]:
    """The seqs up to the end, put `into` as they come; each event's text must be its seq."""
    seqs = [] if into is None else into
    async with asyncio.timeout(30), bus.subscribe(trace_id, after=after) as events:
        if standing is not None:
            standing.set()
        async for event in events:
            assert isinstance(event.body, FinishedEvent) or event.body.text == str(event.seq)
            seqs.append(event.seq)
    return seqs


async def all_have(*readers: list[int], count: int) -> None:
    await until(lambda: all(len(got) == count for got in readers), what=f"every reader having {count} events")


async def test_local_reader_gets_all_in_order_and_may_join_late(stage: Stage) -> None:
    bus, trace_id = await stage.bus(), new_trace_id()
    publisher = await bus.open_run(trace_id)
    async with asyncio.TaskGroup() as group:
        early = group.create_task(read(bus, trace_id))
        await emit(publisher, range(100))
        late = group.create_task(read(bus, trace_id, after=49))
        await emit(publisher, range(100, 150))
        await publisher.emit(END)
    assert early.result() == list(range(151))
    assert late.result() == list(range(50, 151))
    assert await read(bus, trace_id) == list(range(151))
    assert await read(bus, trace_id, after=150) == []


async def test_two_readers_elsewhere_get_all_in_order(stage: Stage) -> None:
    here, there, third = await stage.bus(), await stage.bus(), await stage.bus()
    trace_id = new_trace_id()
    first_stands, second_stands = asyncio.Event(), asyncio.Event()
    first_got: list[int] = []
    second_got: list[int] = []
    async with asyncio.TaskGroup() as group:
        first = group.create_task(read(there, trace_id, standing=first_stands, into=first_got))
        second = group.create_task(read(third, trace_id, standing=second_stands, into=second_got))
        await first_stands.wait()
        await second_stands.wait()
        publisher = await here.open_run(trace_id)
        for end in range(50, 1001, 50):  # in bursts below the readers' buffer
            await emit(publisher, range(end - 50, end))
            await all_have(first_got, second_got, count=end)
        await publisher.emit(END)
    assert first.result() == second.result() == list(range(1001))


async def test_concurrent_emits_reach_the_wire_in_order(stage: Stage) -> None:
    here, there, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
    standing = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(collect(there, trace_id, standing))
        await standing.wait()
        publisher = await here.open_run(trace_id)
        async with asyncio.TaskGroup() as emitters:
            for _ in range(4):
                emitters.create_task(emit(publisher, range(50)))
        await publisher.emit(END)
    assert reader.result() == list(range(201))


async def collect(bus: Any, trace_id: str, standing: asyncio.Event) -> list[int]:
    async with asyncio.timeout(30), bus.subscribe(trace_id) as events:
        standing.set()
        return [event.seq async for event in events]


async def test_late_joiner_elsewhere(stage: Stage) -> None:
    here, there, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
    publisher = await here.open_run(trace_id)
    await emit(publisher, range(700))  # more than one page of history
    await here.ping()
    standing = asyncio.Event()

    async def join() -> list[int]:
        return await read(there, trace_id, standing=standing)

    async def go_on() -> None:
        await standing.wait()
        await emit(publisher, range(700, 750))
        await publisher.emit(END)

    if stage.kind == "core":
        # The promise is weaker: core keeps no history. The reader gets an error, never a hole.
        async with asyncio.TaskGroup() as group:
            group.create_task(go_on())
            with pytest.raises(Unavailable, match="lost"):
                await join()
        return
    async with asyncio.TaskGroup() as group:
        joined = group.create_task(join())
        group.create_task(go_on())
    assert joined.result() == list(range(751))
    assert await read(there, trace_id) == list(range(751))  # again, when all is over


@keeps_history  # core keeps no history: a reader elsewhere cannot resume
async def test_resume_without_loss_or_doubling_while_the_run_goes_on(stage: Stage) -> None:
    here, there, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
    publisher = await here.open_run(trace_id)

    async def run() -> None:
        for n in range(600):
            await publisher.emit(TokenEvent(text=str(n)))
            if n % 3 == 0:
                await asyncio.sleep(0.001)  # the pace of a real run
        await publisher.emit(END)

    got: list[int] = []
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(run())
        ended = False
        while not ended:
            async with there.subscribe(trace_id, after=got[-1] if got else -1) as events:
                async for event in events:
                    got.append(event.seq)
                    ended = isinstance(event.body, FinishedEvent)
                    if event.seq % 40 == 7:
                        break  # the client went away; it comes back for the rest
    assert got == list(range(601))


async def test_slow_reader_is_cut_off_and_does_not_disturb_others(stage: Stage) -> None:
    here, there, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
    standing = asyncio.Event()
    got: list[int] = []
    async with there.subscribe(trace_id) as slow:
        async with asyncio.TaskGroup() as group:
            good = group.create_task(read(there, trace_id, standing=standing, into=got))
            await standing.wait()
            publisher = await here.open_run(trace_id)
            await emit(publisher, range(1))
            assert (await anext(slow)).seq == 0  # and now it stands still
            for start in range(1, 3 * BUFFER, 20):
                end = min(start + 20, 3 * BUFFER)
                await emit(publisher, range(start, end))
                await all_have(got, count=end)
            await publisher.emit(END)
        assert good.result() == list(range(3 * BUFFER + 1))
        with pytest.raises(Overloaded, match="behind"):
            async for _ in slow:
                pass


async def test_finished_is_the_end(stage: Stage) -> None:
    bus, trace_id = await stage.bus(), new_trace_id()
    publisher = await bus.open_run(trace_id)
    await publisher.emit(END)
    with pytest.raises(ValueError, match="has finished"):
        await publisher.emit(TokenEvent(text="x"))
    with pytest.raises(ValueError, match="known"):
        await bus.open_run(trace_id)
    resumed = await bus.open_run(trace_id, resume=True)
    with pytest.raises(ValueError, match="has finished"):
        await resumed.emit(END)


@keeps_history  # core remembers nothing: a run that is taken over begins anew
async def test_another_process_takes_a_run_over(stage: Stage) -> None:
    dead, heir, reader = await stage.bus(), await stage.bus(), await stage.bus()
    trace_id = new_trace_id()
    await emit(await dead.open_run(trace_id), range(10))
    await dead.ping()
    publisher = await heir.open_run(trace_id, resume=True)
    assert (await publisher.emit(TokenEvent(text="10"))).seq == 10
    await publisher.emit(END)
    assert await read(reader, trace_id) == list(range(12))
    assert await read(heir, trace_id) == list(range(12))  # what is not in the heir's memory comes from the stream


@keeps_history  # core remembers nothing: a run that is taken over begins anew
async def test_a_run_that_comes_back_goes_on_after_what_another_process_published(stage: Stage) -> None:
    first, second, trace_id = await stage.bus(), await stage.bus(), new_trace_id()
    await emit(await first.open_run(trace_id), range(3))
    await first.ping()
    await emit(await second.open_run(trace_id, resume=True), range(3, 5))
    await second.ping()
    publisher = await first.open_run(trace_id, resume=True)
    assert (await publisher.emit(TokenEvent(text="5"))).seq == 5
    await publisher.emit(END)
    assert await read(first, trace_id) == list(range(7))


async def test_cancel_reaches_a_listener_elsewhere(stage: Stage) -> None:
    here, there = await stage.bus(), await stage.bus()
    heard: list[tuple[str, str]] = []
    await there.on_cancel(lambda trace_id, reason: heard.append((trace_id, reason)))
    await here.publish_cancel("abc", "the client left")
    await until(lambda: heard == [("abc", "the client left")], what="the cancel message")


async def test_a_reader_that_leaves_early_leaves_nothing_on_the_server(jetstream_stage: Stage) -> None:
    here, there, trace_id = await jetstream_stage.bus(), await jetstream_stage.bus(), new_trace_id()
    publisher = await here.open_run(trace_id)
    await emit(publisher, range(10))
    async with there.subscribe(trace_id) as events:
        assert (await anext(events)).seq == 0
    standing = asyncio.Event()
    cancelled = asyncio.ensure_future(read(there, trace_id, standing=standing))
    await standing.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await jetstream_stage.consumers("EVT") == []
    assert len(there._connection._client._subs) <= 1  # the inbox for requests


async def test_events_that_nobody_holds_any_more(jetstream_stage: Stage) -> None:
    here, there, trace_id = await jetstream_stage.bus(), await jetstream_stage.bus(), new_trace_id()
    publisher = await here.open_run(trace_id)
    await emit(publisher, range(20))
    await publisher.emit(END)
    jetstream = here._connection._client.jetstream()
    assert await read(there, trace_id) == list(range(21))  # all is stored now
    await jetstream.purge_stream("EVT", keep=5)
    with pytest.raises(NotFound, match="no longer held"):
        await read(there, trace_id)
    assert await read(there, trace_id, after=15) == [16, 17, 18, 19, 20]
    await jetstream.purge_stream("EVT")
    with pytest.raises(NotFound, match="no longer held"):
        await read(there, trace_id, after=3)
    here._logs._keep_s = 0
    with pytest.raises(NotFound, match="no longer held"):
        await read(here, trace_id)


async def test_a_hole_is_never_rendered(jetstream_stage: Stage) -> None:
    here, there, trace_id = await jetstream_stage.bus(), await jetstream_stage.bus(), new_trace_id()
    publisher = await here.open_run(trace_id)
    await emit(publisher, range(5))
    await here.ping()
    seen: list[int] = []
    async with asyncio.timeout(30), there.subscribe(trace_id) as events:
        while len(seen) < 5:
            seen.append((await anext(events)).seq)
        publisher._log.append(TokenEvent(text="5"))  # numbered, but NATS never sees it
        await publisher.emit(TokenEvent(text="6"))
        with pytest.raises(Unavailable, match="events 5 to 5"):
            await anext(events)
    assert seen == [0, 1, 2, 3, 4]


async def test_a_missed_live_event_comes_from_the_stream(jetstream_stage: Stage) -> None:
    here, there, trace_id = await jetstream_stage.bus(), await jetstream_stage.bus(), new_trace_id()
    publisher = await here.open_run(trace_id)
    seen: list[int] = []
    async with asyncio.timeout(30), there.subscribe(trace_id) as events:
        await emit(publisher, range(5))
        async for event in events:
            seen.append(event.seq)
            if event.seq == 4:  # the live subscription dies unnoticed; the end comes all the same
                await events.ag_frame.f_locals["self"].close()
                await publisher.emit(END)
    assert seen == [0, 1, 2, 3, 4, 5]
