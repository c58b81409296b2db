"""kill -9 of Postgres under a debate that streams: the debate goes on, and its one end is recorded when Postgres is back.

Real NATS, a real gateway on a socket, the real Dagster worker in process; Dagster's own records lie in the same Postgres.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg

from bench.chaos.servers import MortalPostgres
from serve_app.bus.audience import NatsAudience
from serve_app.bus.streams import event_subject
from serve_app.errors import Unavailable
from serve_app.events import FinishedEvent, RoleEvent, TokenEvent, decode
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from tests.contracts.conftest import NatsServer, own_nats, until  # noqa: F401 - own_nats is a fixture
from tests.fault.worker_process import Surroundings, open_worker
from tests.integration.dagster_stand import ScriptedReplicas
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway

WAIT_S = 90.0
AWAY_S = 3.0
BODY: dict[str, Any] = {
    "model": "debate",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "stream": True,
    "x_debate": {"tasks": [{"task": "A", "model": "small"}, {"task": "B", "model": "small"}], "judge_model": "small"},
}


class HeldReplicas(ScriptedReplicas):
    """Debaters say one token, and the rest when they may."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def stream(self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str) -> Any:
        call = request_id.partition("-")[2]
        async for event in super().stream(model, adapter, body, request_id=request_id):
            yield event
            if isinstance(event, TokenEvent) and call[0] in "AB":
                await self.go_on.wait()


@dataclass
class Scene:
    """A gateway and a worker over a Postgres that may be killed."""

    postgres: MortalPostgres
    here: Surroundings  # the gateway's connections
    gateway: GatewayUnderTest
    worker: Surroundings
    replicas: HeldReplicas
    http: httpx.AsyncClient
    told: list[Any] = field(default_factory=list)

    async def tap(self) -> None:
        """Hear everything that is published of any run from now on, whoever publishes it."""

        async def hear(message: Msg) -> None:
            self.told.append(decode(message.data).body)

        await self.worker.nats.subscribe(event_subject("*"), hear)
        await self.worker.nats.flush()

    def heard(self, kind: type) -> int:
        return sum(isinstance(body, kind) for body in self.told)

    async def gateway_has_postgres(self) -> None:
        """Wait until the gateway asks Postgres again: its breaker may have tripped while that was starting up."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return await self.here.pool.ping()
                except Unavailable as away:
                    await asyncio.sleep(away.retry_after_s or 1.0)


@pytest.fixture
async def scene(
    mortal_server: MortalPostgres,
    mortal_dsn: str,
    own_nats: NatsServer,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        settings = Settings(
            config="simulated",
            state_dir=tmp_path,
            postgres_dsn=mortal_dsn,
            nats_url=own_nats.url,
            lease_s=6,  # longer than Postgres is away, and short enough that the sweepers are at work
            tasks_per_run=4,
        )
        here, worker, replicas = Surroundings(settings, "gateway"), Surroundings(settings, "worker"), HeldReplicas()
        for around in (here, worker):
            await around.open(stack)
        await open_worker(worker, replicas, stack)
        parts = {
            "store": here.store,
            "cache": PostgresAnswerCache(here.pool),
            "bus": here.bus,
            "queue": here.queue,
            "audience": NatsAudience(here.nats),
            "replicas": replicas,
        }
        gateway = await stack.enter_async_context(serve_gateway(parts, lease_s=6))
        http = await stack.enter_async_context(gateway.http())
        http.headers["Idempotency-Key"] = "one"
        yield Scene(mortal_server, here, gateway, worker, replicas, http)


@pytest.mark.parametrize("done_while_away", [True, False], ids=["done while away", "done later"])
async def test_a_debate_outlasts_postgres(scene: Scene, done_while_away: bool) -> None:
    await scene.tap()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(scene.http.post("/v1/chat/completions", json=BODY))
        await until(lambda: scene.heard(TokenEvent) == 2 or reading.done(), WAIT_S, "the first token of both debaters")
        assert not reading.done(), reading.result().text
        await asyncio.to_thread(scene.postgres.kill)
        if done_while_away:
            scene.replicas.go_on.set()
        await asyncio.sleep(AWAY_S)  # how long it is away, not a wait for anything
        await asyncio.to_thread(scene.postgres.start)
        scene.replicas.go_on.set()
    lines = reading.result().text.splitlines()
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == "Paris"

    trace_id = reading.result().headers["x-trace-id"]
    await scene.gateway_has_postgres()
    row = await scene.gateway.store.find(trace_id)
    assert row is not None
    assert (row.status, row.attempt) == (RunStatus.SUCCEEDED, 1)
    assert row.answer is not None
    assert row.answer.text == text
    again = await scene.http.post("/v1/chat/completions", json={**BODY, "stream": False})
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["choices"][0]["message"]["content"] == text
    assert (scene.heard(FinishedEvent), scene.heard(RoleEvent)) == (1, 1)
    assert isinstance(scene.told[-1], FinishedEvent)
    assert scene.replicas.open == 0
