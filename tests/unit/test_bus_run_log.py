"""The logs in memory stay within their bounds."""

import asyncio

import pytest

from serve_app.bus.run_log import LogPublisher, RunLogs
from serve_app.errors import Overloaded, Unavailable
from serve_app.events import FinishedEvent, TokenEvent

TOKEN, END = TokenEvent(text="x"), FinishedEvent(reason="stop")


def test_an_open_log_without_events_is_found() -> None:
    logs = RunLogs()
    assert logs.find("a") is None
    log = logs.open("a")
    assert logs.find("a") is log


def test_finished_logs_go_first_oldest_first_then_old_events() -> None:
    logs = RunLogs(max_events=10)
    for name in ("a", "b"):
        log = logs.open(name)
        for _ in range(3):
            logs.append(log, TOKEN)
        logs.append(log, END)
    growing = logs.open("c")
    for _ in range(3):
        logs.append(growing, TOKEN)
    assert logs.find("a") is None
    assert logs.ended_here("a")
    assert logs.find("b") is not None
    for _ in range(20):
        logs.append(growing, TOKEN)
    assert logs.find("b") is None
    assert (growing.base, growing.size, growing.next_seq) == (13, 10, 23)


def test_one_run_is_bounded_too() -> None:
    logs = RunLogs(max_run_events=32)
    log = logs.open("a")
    for _ in range(1000):
        logs.append(log, TOKEN)
        assert log.size <= 32
    assert log.next_seq == 1000


def test_open_runs_are_bounded_and_ended_ones_are_forgotten_in_time() -> None:
    logs = RunLogs(max_runs=2, keep_s=0)
    first = logs.open("a")
    logs.open("b")
    with pytest.raises(Overloaded, match="2 runs are open"):
        logs.open("c")
    logs.append(first, END)
    logs.open("c")
    assert logs.find("a") is None
    with pytest.raises(ValueError, match="known"):
        logs.open("a")


async def test_a_silent_run_ends_its_reader() -> None:
    logs = RunLogs()
    log = logs.open("a")
    with pytest.raises(Unavailable, match="nothing"):
        await anext(log.read(-1, slack=10, silence_s=0.01))


async def test_a_publisher_in_a_hurry_lets_its_readers_run() -> None:
    logs = RunLogs()
    log = logs.open("a")
    publisher = LogPublisher(logs, log)
    seen = []

    async def read() -> None:
        async for event in log.read(-1, slack=100, silence_s=5):
            seen.append(event.seq)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        for _ in range(5000):
            await publisher.emit(TOKEN)
        await publisher.emit(END)
    assert seen == list(range(5001))


async def test_a_run_that_goes_on_elsewhere_ends_its_readers_and_its_publisher() -> None:
    logs = RunLogs(max_runs=1, abandoned_s=0)
    log = logs.open("a")
    logs.append(log, TOKEN)
    reader = log.read(-1, slack=10, silence_s=5)
    assert (await anext(reader)).seq == 0
    logs.open("b")  # makes room: nothing happened on the first for abandoned_s
    with pytest.raises(Unavailable, match="another process"):
        await anext(reader)
    with pytest.raises(ValueError, match="resume=True"):
        logs.append(log, TOKEN)
