"""What runs on the cluster: the gateway and the replicas as one Serve application, the worker as another."""

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.gateway.deployment import Gateway
from serve_app.replicas.client import ServeReplicas
from serve_app.replicas.deployment import build_deployment
from serve_app.settings import APP_NAME, WORKER_APP_NAME, Settings, settings_to_dict

# By name, not by import: serving does not depend on Dagster, they meet on NATS and in Postgres.
_WORKER_BUILDER = "dagster_project.worker"


def build(settings: Settings) -> Application:
    """Bind the gateway over one deployment per model. Ray must be connected; model sources must be resolved."""
    handles = {model.model_id: build_deployment(model, source_path=model.source or "") for model in settings.models}
    gateway = serve.deployment(
        Gateway,
        name="gateway",
        num_replicas=settings.gateway_replicas,
        # The gateway refuses above its own limit, in OpenAI's shape; Serve would drop requests with plain text.
        max_ongoing_requests=2 * settings.gateway_max_ongoing_requests,
        max_queued_requests=settings.gateway_max_queued_requests,
        user_config=settings.live(),
        ray_actor_options={"num_cpus": 0.2},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=15,
    )
    return gateway.bind(settings_to_dict(settings), handles)


def build_from_config(args: dict[str, Any]) -> Application:
    """For `serve deploy`: `args` are settings (such as {"config": "gpu-cluster"}), the environment fills the rest."""
    return build(Settings(**args))


def deploy(settings: Settings) -> None:
    """Deploy both applications on the connected cluster; returns when they run. Raises RuntimeError when one cannot."""
    serve.start(http_options={"host": settings.host, "port": settings.port})
    build_worker: Callable[[Settings], Application] = import_module(_WORKER_BUILDER).build
    serve.run_many(
        [
            serve.RunTarget(target=build(settings), name=APP_NAME, route_prefix="/"),
            serve.RunTarget(target=build_worker(settings), name=WORKER_APP_NAME, route_prefix=None),
        ]
    )


def replica_stats(settings: Settings) -> list[dict[str, Any]]:
    """`{model, replica, running, waiting}` of every replica, read from the engines. Ray must be connected."""
    return asyncio.run(ServeReplicas(settings).stats())
