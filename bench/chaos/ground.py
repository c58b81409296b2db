"""The stack under test with its own servers, the tap on its events, and the eyes on its processes."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import orjson
import psutil
import yaml
from nats.aio.msg import Msg

from bench.chaos.eyes import Eyes, Role
from bench.chaos.servers import MortalNats, MortalPostgres, MortalServer
from serve_app.configured import SimulatedConfig
from serve_app.local.state import StackState, load_state
from tests.e2e.stack_under_test import RunningStack, running_stack, server_folder

MODEL = "sim-small"
ENGINE = SimulatedConfig(ttft_ms=30, itl_ms=15, seed=1, default_tokens=20)
LEASE_S = 15.0
GATEWAYS, WORKERS, REPLICAS = 2, 1, 2


class Tap:
    """Hears every event while NATS is there. Keeps the seq numbers of each run's `finished`."""

    def __init__(self) -> None:
        self.finished: dict[str, list[int]] = defaultdict(list)
        self.heard = 0

    async def hear(self, message: Msg) -> None:
        self.heard += 1
        if b'"finished"' in message.data:
            event = orjson.loads(message.data)
            if event["type"] == "finished":
                self.finished[event["trace_id"]].append(event["seq"])


@dataclass
class Ground:
    """One stack, whole. `timeout_s`: the deadline of its runs."""

    stack: RunningStack
    state: StackState
    postgres: MortalPostgres
    nats: MortalNats
    eyes: Eyes
    tap: Tap
    timeout_s: float
    workers: int = WORKERS
    began: float = field(default_factory=time.time)

    def server(self, name: str) -> MortalServer:
        return self.nats if name == "nats" else self.postgres

    async def whole(self, timeout_s: float = 120) -> float:
        """Wait until every replica, worker and gateway is there and the API is ready; seconds it took."""
        began = time.monotonic()
        expected: dict[Role, int] = {"gateway": GATEWAYS, "worker": self.workers, "replica": REPLICAS}
        async with self.stack.http() as http, asyncio.timeout(timeout_s):
            while True:
                seats = await self.eyes.seats()
                count = {role: sum(seat.role == role for seat in seats) for role in expected}
                answers = len(await self.eyes.engines()) if count == expected else 0
                if answers == REPLICAS and (await http.get("/readyz")).status_code == 200:
                    return time.monotonic() - began
                await asyncio.sleep(0.3)

    async def memory(self) -> dict[str, int]:
        """Resident bytes of each gateway and worker, by role and pid."""
        found = {}
        for seat in await self.eyes.seats():
            if seat.role != "replica" and psutil.pid_exists(seat.pid):
                found[f"{seat.role} {seat.pid}"] = psutil.Process(seat.pid).memory_info().rss
        return found


@contextmanager
def _servers() -> Iterator[tuple[Path, MortalPostgres, MortalNats]]:
    with server_folder() as folder:
        postgres, bus = MortalPostgres(folder), MortalNats(folder)
        try:
            postgres.start()
            bus.start()
            yield folder, postgres, bus
        finally:
            bus.stop()
            postgres.stop()


@dataclass(frozen=True)
class OwnRay:
    """A Ray cluster that is there already. `variables`: what a process needs that talks to it."""

    address: str
    variables: dict[str, str]


def _configuration(folder: Path, timeout_s: float, workers: int) -> str:
    values: dict[str, Any] = {
        "models": [
            {"model_id": MODEL, "engine": "simulated", "num_cpus": 0.1, "replicas": REPLICAS, "simulated": ENGINE.model_dump()}
        ],
        "gateway_replicas": GATEWAYS,
        "workers": workers,
        "lease_s": LEASE_S,
        "queue_ack_wait_s": 5,
        "request_timeout_s": timeout_s,
        "first_token_timeout_s": 20,
        "stall_timeout_s": 15,
        "keepalive_s": 5,
    }
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(values))
    path.chmod(0o644)
    return str(path)


@asynccontextmanager
async def standing_ground(*, timeout_s: float = 60.0, workers: int = WORKERS, ray: OwnRay | None = None) -> AsyncIterator[Ground]:
    """Start everything, on `ray` or on an embedded node; at the end everything is ended again."""
    # Gateways on several nodes must be reached from the HAProxy of each.
    where = {"ray_address": ray.address, "host": "0.0.0.0"} if ray else {}
    variables = ray.variables if ray else {}
    async with AsyncExitStack() as opened:
        folder, postgres, bus = opened.enter_context(_servers())
        config = _configuration(folder, timeout_s, workers)
        servers = {"postgres_dsn": postgres.dsn(), "nats_url": bus.url}
        stack = opened.enter_context(running_stack(config, variables, **servers, **where))
        state = load_state(Path(stack.info["state_dir"]))
        if state is None:
            raise RuntimeError(f"no state in {stack.info['state_dir']} although `up` succeeded")
        eyes = await Eyes.open(state, opened, variables)
        tap = Tap()
        client = await nats.connect(
            bus.url, name="tap", max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet, pending_size=2**24
        )
        opened.push_async_callback(client.close)
        await client.subscribe("evt.chat.>", cb=tap.hear, pending_msgs_limit=0, pending_bytes_limit=0)
        await client.flush()
        ground = Ground(stack, state, postgres, bus, eyes, tap, timeout_s, workers)
        await ground.whole()
        yield ground


async def _quiet(_: Exception) -> None:
    """The tap loses its connection on purpose; nats-py would print each loss."""
