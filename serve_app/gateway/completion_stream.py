"""A legacy completion as a stream: the replica's chunks as they come, kept alive while it is silent.

The end is never faked: a completion that did not end well ends its stream with one `data: {"error": …}` and no `[DONE]`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import AsyncGeneratorType
from typing import Final, cast

import anyio
import orjson

from serve_app.errors import AifactoryError, DeadlineExceeded
from serve_app.gateway.counted_stream import CountedStream
from serve_app.gateway.metering import Chunks
from serve_app.gateway.sse import DONE, KEEPALIVE, error_frame
from serve_app.lifecycle.ahead import ReadAhead
from serve_app.telemetry import logger, observe

_ROUTE: Final = "direct"


class CompletionReader:
    """Reads the frames of one completion until `deadline` (loop time). A wait may be given up without losing a frame."""

    def __init__(self, chunks: Chunks, *, deadline: float, keepalive_s: float) -> None:
        self._chunks = chunks
        self._frames = cast("AsyncGeneratorType[bytes, None]", _frames(chunks))
        self._ahead = ReadAhead(self._frames)
        self._deadline = deadline
        self._keepalive_s = keepalive_s

    async def next(self) -> bytes:
        """The next frame; KEEPALIVE when none comes in time, DONE after the last. Raises what cut the completion."""
        left_s = self._deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise late()
        try:
            frame = await self._ahead.next(min(self._keepalive_s, left_s))
        except StopAsyncIteration:
            return DONE
        if frame is not None:
            return frame
        if left_s <= self._keepalive_s:
            raise late()
        return KEEPALIVE

    async def close(self) -> None:
        """Stop the engine, even when the task that asks for it is being cancelled."""
        with anyio.CancelScope(shield=True):
            await self._ahead.close()
            if not self._frames.ag_running:  # else it is closing already: it was cancelled in the middle of a wait
                await self._frames.aclose()
                await self._chunks.aclose()  # nobody did, if the frames had not begun


class CompletionStream(CountedStream):
    """The stream of one completion. When it ends, for whatever reason, the reader is closed, and the exchange's span says so."""

    def __init__(self, reader: CompletionReader, first: bytes, *, headers: dict[str, str]) -> None:
        self._reader = reader
        super().__init__(self._sent(first), route=_ROUTE, close=reader.close, headers=headers)

    async def _sent(self, frame: bytes) -> AsyncIterator[bytes]:
        try:
            while frame is not DONE:
                yield frame
                frame = await self._reader.next()
            self.ended()
            yield DONE
        except AifactoryError as error:
            self.ended(error.code)
            yield error_frame(error)


def late() -> DeadlineExceeded:
    return DeadlineExceeded("the completion did not finish within its time (x_timeout_s)")


async def _frames(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Each chunk as a frame. Raises AifactoryError only: another fault is logged here, for whoever left hears of no end."""
    begun: float | None = time.monotonic()
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                if begun is not None:
                    observe("aifactory_time_to_first_token_seconds", time.monotonic() - begun, route=_ROUTE)
                    begun = None
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
    except AifactoryError:
        raise
    except Exception as error:
        logger.opt(exception=error).error("completion broke")
        raise AifactoryError("the completion broke; the log has the cause under this trace_id") from error
