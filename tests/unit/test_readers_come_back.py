"""The last reader leaves, and another comes while the gateway still asks others: the run goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.lifecycle.readers import Readers
from serve_app.tasks import TaskOwner


class SlowAudience:
    """Nobody elsewhere reads, and it takes a while to know that."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def attend(self, trace_id: str) -> AsyncIterator[None]:
        yield

    async def others(self, trace_id: str) -> bool:
        self.asked.set()
        await self.answer.wait()
        return False


async def stopped_after(*, comes_back: bool) -> list[str]:
    stopped: list[str] = []

    async def stop(trace_id: str, reason: str) -> None:
        stopped.append(trace_id)

    audience, tasks = SlowAudience(), TaskOwner()
    readers = Readers(audience=audience, stop=stop, tasks=tasks)
    async with readers.reading("run", keyed=False):
        pass
    async with asyncio.timeout(30):
        await audience.asked.wait()
        if comes_back:
            async with readers.reading("run", keyed=False) as reading:
                audience.answer.set()
                while len(tasks):
                    await asyncio.sleep(0)
                reading.ended = True
        else:
            audience.answer.set()
        while len(tasks):
            await asyncio.sleep(0)
    return stopped


async def test_a_reader_who_comes_back_meanwhile_keeps_the_run() -> None:
    assert await stopped_after(comes_back=True) == []


async def test_without_one_it_is_stopped() -> None:
    assert await stopped_after(comes_back=False) == ["run"]
