"""The contract of the queue of workflow runs, on the double, on core NATS and on JetStream."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import nats
import pytest

from serve_app.errors import Overloaded, Unavailable
from serve_app.runs import Question, Run, new_trace_id
from tests.contracts.conftest import ACK_WAIT_S, NatsServer, Stage, bus_settings

# What mode core does not promise is not asked of it; the reason stands beside each mark.
keeps_history = pytest.mark.parametrize("stage", ["memory", "jetstream"], indirect=True)

WAIT_S = 30.0


def a_run() -> Run:
    question = Question("p", "workflow", "m", None, [{"role": "user", "content": "hi"}])
    return Run(new_trace_id(), question.req_id, question.req_id, False, question, time.time() + 60)


async def taken(runs: Any, timeout_s: float = WAIT_S) -> Any:
    async with asyncio.timeout(timeout_s):
        return await anext(runs)


async def submit_when_heard(queue: Any, run: Run) -> None:
    """In mode core there must be a worker first; wait until it is known to the server."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await queue.submit(run)
            except Unavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def waiting_runs(queue: Any, count: int) -> None:
    """The consumer counts a moment after the stream has stored."""
    async with asyncio.timeout(WAIT_S):
        while await queue.pending() != count:
            await asyncio.sleep(0.01)


async def backlog(queue: Any, count: int) -> None:
    """The consumer counts a moment after the stream has stored, and what is over after ack_wait."""
    async with asyncio.timeout(WAIT_S):
        while await queue.backlog() != count:
            await asyncio.sleep(0.01)


async def test_a_run_goes_to_one_worker(stage: Stage) -> None:
    gateway, worker, run = await stage.queue(), await stage.queue(), a_run()
    async with aclosing(worker.deliveries(limit=2)) as runs, asyncio.TaskGroup() as group:
        group.create_task(submit_when_heard(gateway, run))
        delivery = await taken(runs)
        assert (delivery.run, delivery.delivery_count) == (run, 1)
        async with delivery.heartbeat():
            pass
        await delivery.done()
        with pytest.raises(ValueError, match="ended"):
            await delivery.done()
        with pytest.raises(TimeoutError):
            await taken(runs, 1.5 * ACK_WAIT_S)
    await waiting_runs(gateway, 0)


async def test_no_more_runs_than_free_slots(stage: Stage) -> None:
    gateway, worker = await stage.queue(), await stage.queue()
    first, second = a_run(), a_run()
    async with aclosing(worker.deliveries(limit=1)) as runs, asyncio.TaskGroup() as group:
        group.create_task(submit_when_heard(gateway, first))
        delivery = await taken(runs)
        assert delivery.run == first
        later = group.create_task(gateway.submit(second))
        waiting = asyncio.ensure_future(anext(runs))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        if stage.kind == "core":
            assert not later.done()  # core keeps nothing: the gateway looks for a free worker
        else:
            await waiting_runs(gateway, 1)
        await delivery.done()
        async with asyncio.timeout(WAIT_S):
            next_delivery = await waiting
        assert next_delivery.run == second
        await next_delivery.done()


async def test_without_a_worker(stage: Stage) -> None:
    queue = await stage.queue()
    if stage.kind == "core":  # weaker: nobody there to take it
        with pytest.raises(Unavailable, match="nobody listens"):
            await queue.submit(a_run())
        return
    run = a_run()
    await queue.submit(run)
    await queue.submit(run)  # the same run again is the same submission
    await queue.submit(a_run())
    await waiting_runs(queue, 2)


@keeps_history  # core does not redeliver: a worker that dies takes its runs with it
async def test_a_silent_worker_loses_its_run(stage: Stage) -> None:
    gateway, silent, lively = await stage.queue(), await stage.queue(), await stage.queue()
    run = a_run()
    await gateway.submit(run)
    async with aclosing(silent.deliveries(limit=1)) as lost:
        first = await taken(lost)
        assert not first.last
        async with aclosing(lively.deliveries(limit=4)) as runs:
            second = await taken(runs)
            assert (second.run, second.delivery_count, second.last) == (run, 2, False)
            await second.retry(0.1)
            third = await taken(runs)
            assert (third.delivery_count, third.last) == (3, True)
            await third.reject()
            with pytest.raises(TimeoutError):
                await taken(runs, 2 * ACK_WAIT_S)


@keeps_history  # core keeps nothing that could come again
async def test_the_backlog_is_what_may_be_brought_again(stage: Stage) -> None:
    gateway, worker = await stage.queue(), await stage.queue()
    assert await gateway.backlog() == 0
    await gateway.submit(a_run())
    await gateway.submit(a_run())
    await backlog(gateway, 2)
    async with aclosing(worker.deliveries(limit=2)) as runs:
        first, second = await taken(runs), await taken(runs)
        await backlog(gateway, 2)  # taken, but a worker may die
        await first.done()
        await backlog(gateway, 1)
        await second.retry(60)
        await backlog(gateway, 1)


async def test_a_run_that_was_delivered_for_the_last_time_leaves_the_backlog(jetstream_stage: Stage) -> None:
    jetstream_stage.settings = bus_settings(queue_max_deliver=1)
    gateway, worker = await jetstream_stage.queue(), await jetstream_stage.queue()
    await gateway.submit(a_run())
    async with aclosing(worker.deliveries(limit=2)) as runs:
        assert (await taken(runs)).last
        await backlog(gateway, 0)


async def test_core_has_no_backlog_but_says_when_nats_is_away(own_nats: NatsServer) -> None:
    stage = Stage("core", own_nats.url)
    queue = await stage.queue()
    try:
        assert await queue.backlog() == 0
        own_nats.kill()
        with pytest.raises(Unavailable):
            await queue.backlog()
    finally:
        await stage.close()


@keeps_history  # core does not redeliver
async def test_a_heartbeat_keeps_the_run(stage: Stage) -> None:
    stage.settings = bus_settings(queue_ack_wait_s=6)  # a beat each two seconds, so that one may be late
    gateway, busy, idle = await stage.queue(), await stage.queue(), await stage.queue()
    await gateway.submit(a_run())
    async with aclosing(busy.deliveries(limit=1)) as mine, aclosing(idle.deliveries(limit=1)) as others:
        delivery = await taken(mine)
        async with delivery.heartbeat():
            with pytest.raises(TimeoutError):
                await taken(others, 9)
        await delivery.done()


async def test_an_error_under_the_heartbeat_leaves_as_it_is(stage: Stage) -> None:
    gateway, worker = await stage.queue(), await stage.queue()
    async with aclosing(worker.deliveries(limit=1)) as runs, asyncio.TaskGroup() as group:
        group.create_task(submit_when_heard(gateway, a_run()))
        delivery = await taken(runs)
        with pytest.raises(KeyError, match="x"):
            async with delivery.heartbeat():
                raise KeyError("x")
        await delivery.reject()


@keeps_history  # core keeps no queue
async def test_a_full_queue_says_so(stage: Stage) -> None:
    stage.settings = bus_settings(queue_max_pending=2)
    queue = await stage.queue()
    await queue.submit(a_run())
    await queue.submit(a_run())
    with pytest.raises(Overloaded, match="full"):
        await queue.submit(a_run())


async def test_all_workers_busy_in_core(nats_url: str) -> None:
    stage = Stage("core", nats_url)
    gateway, worker = await stage.queue(), await stage.queue()
    async with aclosing(worker.deliveries(limit=1)) as runs, asyncio.TaskGroup() as group:
        group.create_task(submit_when_heard(gateway, a_run()))
        await taken(runs)
        with pytest.raises(Overloaded, match="busy"):
            await gateway.submit(a_run())
    await stage.close()


async def test_poison_is_thrown_away(jetstream_stage: Stage) -> None:
    queue = await jetstream_stage.queue()
    client = await nats.connect(jetstream_stage.url)
    jetstream = client.jetstream()
    await jetstream.publish("req.chat", b"{not a run")
    run = a_run()
    await queue.submit(run)
    async with aclosing(queue.deliveries(limit=1)) as runs:
        delivery = await taken(runs)
        assert delivery.run == run
        await delivery.done()
        with pytest.raises(TimeoutError):
            await taken(runs, 1.5 * ACK_WAIT_S)
    assert (await jetstream.stream_info("REQ")).state.messages == 0
    await client.close()


async def test_a_worker_that_leaves_gives_back_at_once(jetstream_stage: Stage) -> None:
    leaving, staying = await jetstream_stage.queue(), await jetstream_stage.queue()
    async with aclosing(leaving.deliveries(limit=1)) as runs:
        with pytest.raises(TimeoutError):
            await taken(runs, 0.3)
    run = a_run()
    await staying.submit(run)
    async with aclosing(staying.deliveries(limit=1)) as runs:
        delivery = await taken(runs)
        assert (delivery.run, delivery.delivery_count) == (run, 1)
        await delivery.done()
    assert await jetstream_stage.consumers("REQ") == ["workers"]
