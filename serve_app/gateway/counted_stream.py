"""A stream of server-sent events that is closed, counted and noted when it ends, however it ends."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.errors import Cancelled
from serve_app.gateway.exchange_span import CLIENT_LEFT, note_cut
from serve_app.telemetry import count, observe


class CountedStream(StreamingResponse):
    """Sends `frames`, then calls `close`. Whoever makes the frames says with `ended` how the stream ends."""

    def __init__(
        self, frames: AsyncIterator[bytes], *, route: str, close: Callable[[], Awaitable[None]], headers: dict[str, str]
    ) -> None:
        self._route = route
        self._close = close
        self._finished = False
        self._broken: str | None = None  # the code of the error that ended the stream
        self._opened = time.monotonic()
        super().__init__(
            frames,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers},
        )

    def ended(self, broken: str | None = None) -> None:
        """The stream has its end, an error of code `broken` or a good one. To be called before its last frame is out: a
        client may close the moment it has read that."""
        self._finished, self._broken = True, broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()
            observe("aifactory_sse_seconds", time.monotonic() - self._opened, route=self._route)
            if not self._finished:
                count("aifactory_streams_dropped_total", route=self._route, reason="client")
                note_cut(scope, CLIENT_LEFT, failed=False)
            elif self._broken is not None:
                if self._broken != Cancelled.default_code:  # which somebody asked for
                    count("aifactory_streams_dropped_total", route=self._route, reason=self._broken)
                note_cut(scope, self._broken, failed=True)
