"""What one worker does in a second when work always waits: the debates stand in its queue before the clock starts.

Asked one after the other, a worker would be idle now and then, and the figure would be that of the gateway and of NATS.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from bench.workflow.cpu import cpu_seconds
from bench.workflow.figures import ask, fresh_question, read
from bench.workflow.ground import Ground, debate_of
from serve_app.bus.connection import NatsConnection
from serve_app.bus.run_queue import NatsRunQueue
from serve_app.local.state import settings_file
from serve_app.settings import Settings, settings_from_dict

_FILL_S: Final = 90.0
_LOOK_S: Final = 0.05
_ANSWER_S: Final = 200.0
_ENDLESS: Final = 4000  # tokens of a debater that only keeps a place; it is cancelled long before


@dataclass(frozen=True)
class Worked:
    """Debates a second, and the seconds of CPU that each part of the stack took for one, both without the admission."""

    per_second: float
    cpu: dict[str, float]


async def work_off(ground: Ground, runs: int) -> Worked:
    """Let `runs` debates on replicas that answer at once wait for a busy worker; then free it, and wait for the answers.

    The gateway's part of the answers is in the figures. Raises TimeoutError when the queue does not fill.
    """
    settings = settings_from_dict(json.loads(settings_file(ground.state.state_dir).read_text()))
    async with _queue_of(settings) as queue, _crowd(ground) as http, asyncio.TaskGroup() as group:
        slots = settings.runs_per_worker
        await asyncio.gather(*(ask(http, number) for number in range(-3 * slots, 0)))
        busy = [await _keep_busy(http, number, group) for number in range(slots)]
        asked = [group.create_task(ask(http, number)) for number in range(runs)]
        async with asyncio.timeout(_FILL_S):
            while await queue.pending() < runs:  # noqa: ASYNC110 - the queue is another process's
                await asyncio.sleep(_LOOK_S)
        before, began = cpu_seconds(ground.state), time.perf_counter()
        await asyncio.gather(*(http.post(f"/v1/runs/{trace_id}/cancel") for trace_id in busy))
        await asyncio.gather(*asked)
        seconds = time.perf_counter() - began
        after = cpu_seconds(ground.state)
    return Worked(runs / seconds, {part: (used - before.get(part, 0.0)) / runs for part, used in after.items()})


async def _keep_busy(http: httpx.AsyncClient, number: int, group: asyncio.TaskGroup) -> str:
    """Take one of the worker's places until it is cancelled; returns the trace_id."""
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    group.create_task(read(http, debate_of("steady", fresh_question(number), max_tokens=_ENDLESS), started))
    return await started


def _crowd(ground: Ground) -> httpx.AsyncClient:
    """A client that may wait for any number of answers at once."""
    known = ground.http
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=known.base_url, headers=known.headers, timeout=_ANSWER_S, limits=limits, trust_env=False)


@asynccontextmanager
async def _queue_of(settings: Settings) -> AsyncIterator[NatsRunQueue]:
    if settings.nats_url is None:
        raise ValueError("the settings of the stack name no NATS")
    connection = NatsConnection(settings.nats_url.get_secret_value(), "bench")
    queue = NatsRunQueue(connection, settings)
    connection.start()
    try:
        yield queue
    finally:
        await connection.close()
