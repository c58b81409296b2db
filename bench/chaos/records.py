"""What the servers know after a run: rows, events, locks, consumers. Read directly, past the product."""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import asyncpg
import nats
import orjson
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bench.chaos.ground import Ground
from serve_app.bus.streams import EVENT_STREAM, REQUEST_STREAM, event_subject
from serve_app.local.dagster_home import database_name

_DAGSTER_ENDS = ("SUCCESS", "FAILURE", "CANCELED")


@dataclass(frozen=True)
class Row:
    """A row of the idempotency log. Times are Unix seconds."""

    trace_id: str
    key: str
    keyed: bool
    req_id: str
    route: str
    status: str
    attempt: int
    created: float
    updated: float
    overdue: bool
    text: str | None
    error: str
    dagster_run_id: str | None
    past: bool


async def rows(ground: Ground) -> list[Row]:
    """The whole log, with the runs whose row another run has taken over (`past`)."""
    found = await _fetch(
        ground.postgres.dsn(),
        "SELECT trace_id, key, keyed, req_id, route, status, attempt, extract(epoch FROM created_at)::float8 AS created,"
        " extract(epoch FROM updated_at)::float8 AS updated, lease_until < now() AS overdue, result::text AS result,"
        " error::text AS error, dagster_run_id, past"
        " FROM (SELECT *, false AS past FROM idempotency_log UNION ALL SELECT *, true FROM run_history) AS runs",
    )
    return [_row(dict(record)) for record in found]


def _row(values: dict[str, Any]) -> Row:
    result, error = values.pop("result"), values.pop("error")
    text = None if result is None else json.loads(result)["messages"][0].get("content")
    return Row(**values, text=text, error="" if error is None else str(json.loads(error).get("message")))


async def running(ground: Ground) -> int:
    """Rows that have no end yet."""
    return int((await _fetch(ground.postgres.dsn(), "SELECT count(*) FROM idempotency_log WHERE status = 'running'"))[0][0])


async def advisory_locks(ground: Ground) -> int:
    """Advisory locks held on the server, in any database."""
    return int((await _fetch(ground.postgres.dsn(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))[0][0])


async def open_dagster_runs(ground: Ground) -> list[str]:
    """Dagster runs without an end, as `id status trace_id`."""
    found = await _fetch(
        ground.postgres.dsn(database_name()),
        "SELECT r.run_id || ' ' || r.status || ' ' || coalesce(t.value, '') FROM runs r"
        " LEFT JOIN run_tags t ON t.run_id = r.run_id AND t.key LIKE '%trace_id'"
        f" WHERE r.status NOT IN {_DAGSTER_ENDS}",
    )
    return [record[0] for record in found]


async def connections(ground: Ground) -> dict[str, int]:
    """Connections to Postgres by application."""
    found = await _fetch(
        ground.postgres.dsn(),
        "SELECT coalesce(nullif(application_name, ''), 'unnamed'), count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1",
    )
    return dict(found)


@dataclass(frozen=True)
class BusState:
    """What JetStream holds: consumers by stream, runs still queued, and the seq of each `finished` by run."""

    consumers: dict[str, list[str]]
    queued: int
    finished: dict[str, list[int]]


async def bus_state(ground: Ground) -> BusState:
    """Ask the NATS server. Reads the whole event stream."""
    client = await nats.connect(ground.nats.url, name="records")
    try:
        jetstream = client.jetstream()
        consumers = {
            name: [consumer.name for consumer in await jetstream.consumers_info(name)] for name in (REQUEST_STREAM, EVENT_STREAM)
        }
        queued = (await jetstream.stream_info(REQUEST_STREAM)).state.messages
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, mem_storage=True)
        reading = await jetstream.pull_subscribe(event_subject("*"), stream=EVENT_STREAM, config=config)
        finished: dict[str, list[int]] = defaultdict(list)
        left = (await jetstream.stream_info(EVENT_STREAM)).state.messages
        while left > 0:
            try:
                messages = await reading.fetch(min(1000, left), timeout=5)
            except NatsTimeoutError:
                break
            left -= len(messages)
            for message in messages:
                if b'"finished"' in message.data and (event := orjson.loads(message.data))["type"] == "finished":
                    finished[event["trace_id"]].append(event["seq"])
        name = (await reading.consumer_info()).name
        await reading.unsubscribe()
        await jetstream.delete_consumer(EVENT_STREAM, name)
        return BusState(consumers, queued, finished)
    finally:
        await client.close()


async def queued(ground: Ground) -> int:
    """Runs that the queue still holds: a worker acknowledges one after its end is in the log."""
    client = await nats.connect(ground.nats.url, name="records")
    try:
        return (await client.jetstream().stream_info(REQUEST_STREAM)).state.messages
    finally:
        await client.close()


async def settled(ground: Ground, timeout_s: float) -> None:
    """Wait until the log has no running row, the engines are idle and the queue is empty.

    Returns after `timeout_s` in any case.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while loop.time() < deadline:
        ended = await running(ground) == 0 and await ground.eyes.busy() == 0 and not await open_dagster_runs(ground)
        if ended and await queued(ground) == 0:
            return
        await asyncio.sleep(1)


async def _fetch(dsn: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        found: list[Any] = await connection.fetch(query, timeout=30)
        return found
    finally:
        await connection.close()
