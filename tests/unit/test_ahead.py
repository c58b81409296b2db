"""Reading ahead: a wait may be given up and taken up again, and no item is lost."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from serve_app.lifecycle.ahead import ReadAhead

NEVER_S = 30.0


class Source:
    """Items that come when the test sends them."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.given = 0
        self.closed = False

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.given += 1
                yield item
        finally:
            self.closed = True

    def send(self, *items: int | Exception | None) -> None:
        for item in items:
            self.items.put_nowait(item)


async def test_a_wait_that_was_given_up_loses_nothing() -> None:
    source = Source()
    ahead = ReadAhead(source.read())
    assert await ahead.next(0.01) is None
    assert await ahead.next(0.0) is None
    source.send(1, 2, None)
    assert [await ahead.next(NEVER_S), await ahead.next(NEVER_S)] == [1, 2]
    with pytest.raises(StopAsyncIteration):
        await ahead.next(NEVER_S)
    with pytest.raises(StopAsyncIteration):
        await ahead.next(0.0)


async def test_an_error_comes_after_what_was_read_before_it() -> None:
    source = Source()
    ahead = ReadAhead(source.read())
    source.send(1, ValueError("broken"))
    assert await ahead.next(NEVER_S) == 1
    with pytest.raises(ValueError, match="broken"):
        await ahead.next(NEVER_S)


async def test_it_reads_a_few_ahead_and_no_more() -> None:
    source = Source()
    ahead = ReadAhead(source.read())
    source.send(*range(100), None)
    assert await ahead.next(NEVER_S) == 0
    for _ in range(300):
        await asyncio.sleep(0)
    assert source.given < 40
    assert [await ahead.next(NEVER_S) for _ in range(99)] == list(range(1, 100))
    with pytest.raises(StopAsyncIteration):
        await ahead.next(NEVER_S)


async def test_close_ends_the_reading_but_leaves_the_source_to_its_owner() -> None:
    source = Source()
    async with aclosing(source.read()) as items:
        ahead = ReadAhead(items)
        assert await ahead.next(0.01) is None
        await ahead.close()
        await ahead.close()
        with pytest.raises(asyncio.CancelledError):
            await ahead.next(NEVER_S)
    assert source.closed


async def test_a_reader_that_is_cancelled_while_it_waits_can_go_on() -> None:
    source = Source()
    ahead = ReadAhead(source.read())
    waiting = asyncio.ensure_future(ahead.next(NEVER_S))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    source.send(7)
    assert await ahead.next(NEVER_S) == 7
    await ahead.close()
