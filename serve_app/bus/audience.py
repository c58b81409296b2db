"""Interest in a run across gateways: a subscription on `interest.{trace_id}` is a reader, its absence is nobody.

NATS answers a request without subscribers at once, so that asking costs two round trips and a short pause.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.msg import Msg

from serve_app.bus.connection import NatsConnection
from serve_app.errors import Unavailable
from serve_app.telemetry import logger

_ASK_TIMEOUT_S = 1.0
_SETTLE_S = 0.05


class NatsAudience:
    """The Audience port on NATS. While NATS is away, only readers in the same process count."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def attend(self, trace_id: str) -> AsyncIterator[None]:
        """See Audience."""
        if not self._connection.connected:
            yield
            return

        async def answer(message: Msg) -> None:
            with suppress(Unavailable, nats.errors.Error):  # the asker takes silence for a yes as well
                await self._connection.publish(message.reply, b"")

        subscription = None
        try:
            # The server has it a moment later; `others` allows for that, so that no run waits for a round trip here.
            subscription = await self._connection.subscribe(_subject(trace_id), answer)
        except Unavailable as error:
            logger.warning("other gateways may not see this reader", trace_id=trace_id, error=error.message)
        try:
            yield
        finally:
            if subscription is not None:
                await self._connection.unsubscribe(subscription)

    async def others(self, trace_id: str) -> bool:
        """See Audience."""
        if await self._somebody(trace_id):
            return True
        await asyncio.sleep(_SETTLE_S)  # a reader that just came may not be known to the server yet
        return await self._somebody(trace_id)

    async def _somebody(self, trace_id: str) -> bool:
        if not self._connection.connected:
            return False
        try:
            client = await self._connection.client()
            await client.request(_subject(trace_id), timeout=_ASK_TIMEOUT_S)
        except (nats.errors.TimeoutError, TimeoutError):
            return True  # somebody subscribes and is slow
        except (nats.errors.Error, OSError, Unavailable):
            return False  # no responders, or NATS went away
        return True


def _subject(trace_id: str) -> str:
    return f"interest.{trace_id}"


class InMemoryAudience:
    """Audience without a server: readers in this process are the only ones."""

    @asynccontextmanager
    async def attend(self, trace_id: str) -> AsyncIterator[None]:
        """See Audience."""
        yield

    async def others(self, trace_id: str) -> bool:
        """See Audience."""
        return False
