"""A small HTTP/1.1 client over one kept connection: it notes when each part of a body came, and does no more meanwhile.

An ordinary client costs more CPU for a request than some candidates do, and would be what is measured.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Exchange:
    """One request and its answer; moments on the monotonic clock, seconds."""

    began: float
    status: int = 0
    parts: list[tuple[float, bytes]] = field(default_factory=list)  # of the body, as they came
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def body(self) -> bytes:
        return b"".join(part for _, part in self.parts)

    def events(self) -> list[tuple[float, str]]:
        """The data of each server-sent event, with the moment its last byte came."""
        found, rest = [], b""
        for moment, part in self.parts:
            *whole, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
                if lines:
                    found.append((moment, b"\n".join(lines).decode()))
        return found


class Connection(asyncio.Protocol):
    """One connection to a candidate, opened at the first request and again when the server closed it."""

    def __init__(self, origin: str, *, timeout_s: float = 60.0) -> None:
        parts = urlsplit(origin)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._now: Exchange | None = None
        self._done: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: bytes) -> Exchange:
        """Send the bytes of one request and read its answer. Raises ConnectionError when it is cut, TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            if self._transport is None or self._transport.is_closing():
                await asyncio.get_running_loop().create_connection(lambda: self, self._host, self._port)
            assert self._transport is not None
            self._done = asyncio.get_running_loop().create_future()
            self._now = now = Exchange(time.perf_counter())
            self._transport.write(request)
            await self._done
        return now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"{self._host}:{self._port} cut the connection ({exc})"))

    def on_body(self, body: bytes) -> None:
        if self._now is not None:
            self._now.parts.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        if self._now is None or self._done is None or self._done.done():
            return
        self._now.ended, self._now.status = time.perf_counter(), self._parser.get_status_code()
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        self._done.set_result(None)


def request_bytes(origin: str, headers: dict[str, str], body: dict[str, Any]) -> bytes:
    """A POST to the chat endpoint as it goes over the wire."""
    raw = json.dumps(body).encode()
    head = {"host": urlsplit(origin).netloc, "content-type": "application/json", "content-length": str(len(raw)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + raw
