"""Items of a stream sent together: to carry one over Ray costs both sides far more than what is in it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MOST_AHEAD: Final = 256  # items that wait to be sent; then the stream they come from waits


async def in_batches(items: AsyncGenerator[T, None]) -> AsyncGenerator[list[T], None]:
    """All that has come since the last batch was taken; an item that is there is never held back for others.

    Closing it, or cancelling whoever reads it, closes `items`. What they raise comes after all that came before it.
    """
    ahead: list[T] = []
    news, room = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with aclosing(items):
            async for item in items:
                ahead.append(item)
                news.set()
                if len(ahead) >= _MOST_AHEAD:
                    room.clear()
                    await room.wait()

    reading = asyncio.ensure_future(read())
    reading.add_done_callback(lambda _: news.set())
    try:
        while True:
            await news.wait()
            news.clear()
            ended = reading.done()
            if ahead:
                batch = ahead.copy()
                ahead.clear()
                room.set()
                yield batch
            if ended:
                reading.result()
                return
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # it was raised above, or nobody reads any more


class SendsBatches:
    """What the gateway calls: the streams of a replica, in batches. Each stream's first item is its status."""

    async def chat_batches(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[list[Any], None]:
        """The items of `chat_chunks`."""
        async with aclosing(in_batches(self.chat_chunks(body, request_id))) as batches:  # type: ignore[attr-defined]
            async for batch in batches:
                yield batch

    async def completion_batches(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[list[Any], None]:
        """The items of `completion_chunks`."""
        async with aclosing(in_batches(self.completion_chunks(body, request_id))) as batches:  # type: ignore[attr-defined]
            async for batch in batches:
                yield batch
