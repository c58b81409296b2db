"""Streams of a replica in batches: nothing is held back, nothing is lost, and the source is always closed."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve_app.replicas.batches import in_batches


class Source:
    def __init__(self, *steps: int | Exception | None) -> None:
        """A number is an item, None a wait for `go`, an exception is raised."""
        self._steps = steps
        self.go = asyncio.Event()
        self.given = 0
        self.closed = False

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            for step in self._steps:
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    await self.go.wait()
                else:
                    self.given += 1
                    yield step
        finally:
            self.closed = True


async def test_what_comes_at_once_goes_at_once_and_together() -> None:
    source = Source(1, 2, 3, None, 4)
    batches = in_batches(source.read())
    assert await anext(batches) == [1, 2, 3]
    late = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)
    assert not late.done()
    source.go.set()
    assert await late == [4]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    assert source.closed


async def test_an_error_comes_after_all_that_came_before_it() -> None:
    source = Source(1, None, 2, ValueError("broken"))
    source.go.set()
    batches, got = in_batches(source.read()), list[int]()
    while len(got) < 2:
        got += await anext(batches)
    assert got == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        await anext(batches)
    assert source.closed


async def test_closing_it_closes_the_source() -> None:
    source = Source(1, None)
    batches = in_batches(source.read())
    assert await anext(batches) == [1]
    assert not source.closed
    await batches.aclose()
    assert source.closed


async def test_who_waits_and_is_cancelled_closes_the_source() -> None:
    source = Source(None)
    waiting = asyncio.ensure_future(anext(in_batches(source.read())))
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert source.closed


async def test_a_source_that_nobody_reads_stands_still() -> None:
    source = Source(*range(10_000))
    batches = in_batches(source.read())
    got = list(await anext(batches))
    for _ in range(20):
        await asyncio.sleep(0)
    assert source.given <= 600
    async for batch in batches:
        got += batch
    assert got == list(range(10_000))


async def test_an_empty_stream_is_empty() -> None:
    assert [batch async for batch in in_batches(Source().read())] == []
