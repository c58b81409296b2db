"""The one place that builds the real parts from settings."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app.bus.audience import NatsAudience
from serve_app.bus.connection import NatsConnection
from serve_app.bus.delivery import WorkQueue
from serve_app.bus.event_bus import NatsEventBus
from serve_app.bus.run_queue import run_queue
from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.errors import AifactoryError
from serve_app.replicas.client import ServeReplicas
from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.api_keys import ApiKeys
from serve_app.store.documents import PostgresDocuments
from serve_app.store.launches import PostgresLaunches
from serve_app.store.limits import PostgresLimits
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore
from serve_app.store.trust import PostgresCacheTrust
from serve_app.tracing import Tracing, check_tracing, start_tracing

_PROBE_TIMEOUT_S = 3.0


@dataclass(slots=True)
class Parts:
    """The adapters of one process. Close them when the process ends."""

    pool: PostgresPool
    searches: PostgresPool
    store: PostgresRunStore
    launches: PostgresLaunches
    cache: PostgresAnswerCache
    keys: ApiKeys
    limits: PostgresLimits
    documents: PostgresDocuments
    trust: PostgresCacheTrust
    nats: NatsConnection
    bus: NatsEventBus
    queue: WorkQueue
    audience: NatsAudience
    replicas: ServeReplicas
    embedder: OnnxEmbedder | None
    tracing: Tracing | None = None

    async def probe(self) -> dict[str, str]:
        """For each part `ok`, or what is wrong with it."""
        models = await self.replicas.answers(_PROBE_TIMEOUT_S)
        return {
            "postgres": await _state(self.pool),
            "nats": await _state(self.bus),
            "replicas": "ok" if models else "no replica answers yet for at least one model",
        }

    async def close(self) -> None:
        """Close every connection; a part that is away does not hold up the others."""
        await self.nats.close()
        await asyncio.gather(self.pool.close(), self.searches.close())
        if self.embedder is not None:
            self.embedder.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)


async def open_parts(settings: Settings, *, name: str, with_embedder: bool, handles: Mapping[str, Any] | None = None) -> Parts:
    """Build the parts of a process called `name`. Postgres and NATS may be away: the parts connect when they are back.

    `handles` by model id, where Serve gave them; else replicas are found by name. Raises ValueError when the settings
    name no Postgres or no NATS (the stack fills in its own).
    Raises tracing.TracingUnavailable when they ask for spans that cannot be sent.
    """
    if settings.postgres_dsn is None or settings.nats_url is None:
        raise ValueError("postgres_dsn and nats_url must be set; `aifactory up` sets those of the embedded stack")
    check_tracing(settings)
    half = settings.postgres_pool_size // 2
    reach = partial(
        PostgresPool,
        settings.postgres_dsn.get_secret_value(),
        timeout_s=settings.postgres_timeout_s,
        application_name=f"aifactory-{name}",
    )
    pool = reach(size=settings.postgres_pool_size - half, custom_plans=False)
    searches = reach(size=half, custom_plans=True, breaker=pool.breaker)
    connection = NatsConnection(settings.nats_url.get_secret_value(), f"aifactory-{name}")
    bus = NatsEventBus.for_settings(connection, settings)
    queue = run_queue(connection, settings)
    connection.start()
    return Parts(
        pool=pool,
        searches=searches,
        store=PostgresRunStore(pool),
        launches=PostgresLaunches(pool),
        cache=PostgresAnswerCache(searches, indexed=settings.cache_hnsw_from is not None),
        keys=ApiKeys(pool),
        limits=PostgresLimits(pool),
        documents=PostgresDocuments(searches),
        trust=PostgresCacheTrust(pool),
        nats=connection,
        bus=bus,
        queue=queue,
        audience=NatsAudience(connection),
        replicas=ServeReplicas(settings, handles),
        embedder=load_embedder(settings) if with_embedder else None,
        tracing=start_tracing(settings, component=name),
    )


async def _state(part: PostgresPool | NatsEventBus) -> str:
    try:
        await part.ping()
    except AifactoryError as error:
        return error.message
    return "ok"
