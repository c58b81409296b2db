"""The gateway as a Ray Serve deployment. Its process imports neither vLLM nor torch."""

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.gateway.auth import Authenticator
from serve_app.gateway.http_app import GatewayState, build_http_app
from serve_app.lifecycle.handle import Lifecycle
from serve_app.live_settings import accepted
from serve_app.settings import Settings, settings_from_dict
from serve_app.telemetry import configure_logging
from serve_app.wiring import Parts, open_parts


@serve.ingress()
class Gateway:
    """One gateway replica: checks requests, runs the lifecycle, streams the answers.

    `settings` as settings_to_dict gives them; `handles` by model id.
    """

    async def __init__(self, settings: dict[str, Any], handles: dict[str, DeploymentHandle]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._given: Settings = settings_from_dict(settings)
        self._settings = self._given
        configure_logging(self._settings.log_level, component="gateway")
        self._parts: Parts = await open_parts(self._settings, name="gateway", with_embedder=True, handles=handles)
        parts = self._parts
        self._lifecycle = Lifecycle(
            self._settings,
            store=parts.store,
            cache=parts.cache,
            bus=parts.bus,
            queue=parts.queue,
            replicas=parts.replicas,
            embedder=parts.embedder,
            audience=parts.audience,
            documents=parts.documents,
            trust=parts.trust,
        )
        self._state = GatewayState(
            settings=self._settings,
            lifecycle=self._lifecycle,
            auth=Authenticator(parts.keys, ttl_s=self._settings.api_key_cache_s),
            probe=parts.probe,
            started=int(time.time()),
            meter=parts.limits,
        )
        await self._lifecycle.start()
        gc.collect()
        gc.freeze()  # what stands now stays: the collector need not walk through it again and again under load

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the replica is constructed."""
        return build_http_app(self._state, lifespan=self._lifespan, echo_request_id=False)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over changed live settings, all others being as at the start; requests in flight keep the old ones."""
        if (changed := accepted(self._given, user_config)) is not None:
            self._settings = self._state.settings = self._lifecycle.settings = changed
            self._parts.replicas.take(changed)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        await self._lifecycle.close()
        await self._parts.close()
