"""One connection to NATS that outlives every outage.

The connection is made in the background and remade for ever. While NATS is away, everything that needs it raises
errors.Unavailable at once; nothing is buffered for later.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from serve_app.errors import Unavailable
from serve_app.telemetry import logger

# Called with the client after every connect and reconnect, before the connection counts as connected.
ConnectHook = Callable[[Client], Awaitable[None]]

_CONNECT_TIMEOUT_S: Final = 2
_FIRST_CONNECT_S: Final = 2.0  # how long a first call waits for the first attempt
_HOOK_TIMEOUT_S: Final = 10.0
_HOOK_RETRY_S: Final = 1.0
_DRAIN_TIMEOUT_S: Final = 2
_CLOSE_TIMEOUT_S: Final = 5.0
_PING_INTERVAL_S: Final = 10  # two unanswered pings end a connection that has gone silent


class NatsConnection:
    """A connection to the server at `url`. Constructing it does nothing; it connects at `start()` or at first use.

    `generation` counts losses, so that a reader can tell that it may have missed messages. `pending_bytes` bounds
    what may wait for a slow socket.
    """

    def __init__(self, url: str, name: str, *, reconnect_wait_s: float = 0.5, pending_bytes: int = 4 * 2**20) -> None:
        self._url = url
        self._name = name
        self._reconnect_wait_s = reconnect_wait_s
        self._pending_bytes = pending_bytes
        self._hooks: list[ConnectHook] = []
        self._client: Any = None
        self._owner: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()  # the first attempt is over
        self._up = asyncio.Event()
        self._closed = False
        self._problem: str | None = None
        self.generation = 0

    @property
    def connected(self) -> bool:
        """Whether the server is there and every connect hook has run."""
        return self._up.is_set() and self._client is not None and bool(self._client.is_connected)

    @property
    def place(self) -> str:
        """The server's address without the credentials, for messages."""
        parts = urlsplit(self._url if "//" in self._url else f"nats://{self._url}")
        return f"{parts.hostname}:{parts.port or 4222}"

    def on_connect(self, hook: ConnectHook) -> None:
        """Run `hook` after every connect. It must be safe to run again; until it succeeds, NATS counts as away."""
        self._hooks.append(hook)
        self._up.clear()
        self._wake.set()

    def start(self) -> None:
        """Begin to connect in the background. Needs a running loop; calling it again does nothing."""
        if self._closed:
            raise Unavailable(f"the connection to NATS at {self.place} is closed")
        if self._owner is None:
            loop = asyncio.get_running_loop()
            self._owner = loop.create_task(self._keep_connected(), name=f"nats {self._name}")  # ended by close()

    async def wait_connected(self, timeout_s: float) -> None:
        """Return once connected. Raises Unavailable when that takes longer."""
        self.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
                while not self.connected:  # nats-py notices a loss a moment before it tells
                    await asyncio.sleep(0.02)
                    await self._up.wait()
        except TimeoutError:
            raise self._away() from None

    async def client(self) -> Client:
        """The live client. Waits for the first attempt to connect, never for a reconnect. Raises Unavailable."""
        self.start()
        if not self._settled.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_CONNECT_S):
                    await self._settled.wait()
        if not self.connected:
            raise self._away()
        return self._client

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send one message, not acknowledged. Messages go out in the order of the calls. Raises Unavailable at once."""
        # No await before nats-py has queued the message: that is what keeps the order.
        if not self.connected:
            self.start()
            raise self._away()
        if self._client.pending_data_size > self._pending_bytes:
            raise Unavailable(f"NATS at {self.place} takes messages too slowly: {self._pending_bytes} bytes are waiting")
        try:
            await self._client.publish(subject, payload, reply=reply)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"NATS at {self.place} did not take a message on {subject}: {error}") from error

    async def request(self, subject: str, payload: bytes, *, timeout_s: float, headers: dict[str, str] | None = None) -> Msg:
        """Send one message and return the answer. Raises Unavailable when nobody listens or no answer comes in time."""
        client = await self.client()
        try:
            return await client.request(subject, payload, timeout=timeout_s, headers=headers)
        except nats.errors.NoRespondersError:
            raise Unavailable(f"nobody listens on {subject} at NATS {self.place}") from None
        except (nats.errors.TimeoutError, TimeoutError):
            raise Unavailable(f"no answer on {subject} from NATS at {self.place} within {timeout_s:g} s") from None
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"NATS at {self.place} refused a request on {subject}: {error}") from error

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = "") -> Subscription:
        """Call `callback` for each message. Survives reconnects. The server knows of it when `flush` has returned."""
        client = await self.client()
        try:
            return await client.subscribe(subject, queue=queue, cb=callback)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"NATS at {self.place} refused a subscription to {subject}: {error}") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; one that ended with its client is left alone."""
        with suppress(nats.errors.Error, OSError):  # closed or draining: the subscription is gone already
            await subscription.unsubscribe()

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Return once the server has seen all that was sent before. Raises Unavailable."""
        client = await self.client()
        try:
            # Not Client.flush(): nats-py writes its PING straight to the socket, past commands that still wait.
            # A message to nobody keeps its place, and the server answers it at once.
            await client.request(client.new_inbox(), timeout=timeout_s)
        except nats.errors.NoRespondersError:
            return
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unavailable(f"NATS at {self.place} does not answer within {timeout_s:g} s: {error}") from error

    async def close(self) -> None:
        """Send what is waiting, end subscriptions and connection. Takes a few seconds at most, also while NATS is away."""
        self._closed = True
        if self._owner is not None:
            self._owner.cancel()
            with suppress(asyncio.CancelledError):
                await self._owner
        client, was_up = self._client, self.connected
        self._up.clear()
        if client is None or client.is_closed:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await (client.drain() if was_up else client.close())
        except (nats.errors.Error, OSError, TimeoutError) as error:
            logger.warning("connection to NATS at {} did not drain: {}", self.place, error)
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await client.close()

    def _away(self) -> Unavailable:
        reason = self._problem or ("closed" if self._closed else "not connected yet")
        return Unavailable(f"NATS at {self.place} is away: {reason}", retry_after_s=2)

    async def _keep_connected(self) -> None:
        while True:
            client = Client()
            self._client = client
            # Retries for ever; returns with a live connection, which then reconnects by itself.
            await client.connect(
                self._url,
                **_login(self._url),
                name=self._name,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_change,
                closed_cb=self._on_change,
                connect_timeout=_CONNECT_TIMEOUT_S,
                reconnect_time_wait=self._reconnect_wait_s,
                max_reconnect_attempts=-1,
                ping_interval=_PING_INTERVAL_S,
                drain_timeout=_DRAIN_TIMEOUT_S,
                pending_size=self._pending_bytes,
                flush_timeout=_CONNECT_TIMEOUT_S,
            )
            await self._keep_prepared(client)
            # The server closed the client for good, for example over a wrong password: begin anew.
            await asyncio.sleep(self._reconnect_wait_s)

    async def _keep_prepared(self, client: Client) -> None:
        self._wake.set()
        retry_s: float | None = None
        while not client.is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(retry_s):
                    await self._wake.wait()
            self._wake.clear()
            retry_s = None
            if client.is_connected and not self._up.is_set() and not await self._run_hooks(client):
                retry_s = _HOOK_RETRY_S

    async def _run_hooks(self, client: Client) -> bool:
        generation, hooks = self.generation, tuple(self._hooks)
        try:
            async with asyncio.timeout(_HOOK_TIMEOUT_S):
                for hook in hooks:
                    await hook(client)
        except (nats.errors.Error, Unavailable, OSError, TimeoutError) as error:
            self._note_problem(f"set-up failed: {type(error).__name__}: {error}")
            self._settled.set()
            return False
        if generation == self.generation and len(hooks) == len(self._hooks):
            self._problem = None
            self._up.set()
            self._settled.set()
            logger.info("connected to NATS at {}", self.place)
        return self._up.is_set()

    def _note_problem(self, problem: str) -> None:
        # One line per outage, not one per attempt.
        if self._problem is None and not self._closed:
            logger.warning("NATS at {} is away: {}", self.place, problem)
        self._problem = problem

    async def _on_error(self, error: Exception) -> None:
        if self.connected:
            logger.warning("NATS at {}: {}: {}", self.place, type(error).__name__, error)
            return
        self._note_problem(f"{type(error).__name__}: {error}")
        self._settled.set()

    async def _on_disconnected(self) -> None:
        if self._up.is_set():
            self._note_problem("connection lost")
        self._up.clear()
        self.generation += 1
        self._wake.set()

    async def _on_change(self) -> None:
        self._wake.set()


def _login(url: str) -> dict[str, str]:
    """User and password of the address, or its token: nats-py would send what is percent-encoded as it stands."""
    parts = urlsplit(url if "//" in url else f"nats://{url}")
    if parts.username is None:
        return {}
    if parts.password is None:
        return {"token": unquote(parts.username)}
    return {"user": unquote(parts.username), "password": unquote(parts.password)}
