"""What runs on the cluster: the gateway and the replicas as one Serve application, the worker as another."""

import asyncio
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.gateway.deployment import Gateway
from serve_app.replicas.client import ServeReplicas
from serve_app.replicas.deployment import OWN_LOG_ONLY, build_deployment
from serve_app.settings import APP_NAME, WORKER_APP_NAME, Settings, settings_from_dict, settings_to_dict
from serve_app.tracing import check_tracing

# By name, not by import: serving does not depend on Dagster, they meet on NATS and in Postgres.
_WORKER_BUILDER = "dagster_project.worker"
# Nor does it know the operator's side, which deploys it.
_MODEL_FILES = "serve_app.local.model"


def build(settings: Settings) -> Application:
    """Bind the gateway over one deployment per model. Ray must be connected; model sources must be resolved.

    Raises tracing.TracingUnavailable when the settings ask for spans that cannot be sent.
    """
    check_tracing(settings)
    handles = {model.model_id: build_deployment(model, source_path=model.source or "") for model in settings.models}
    gateway = serve.deployment(
        Gateway,
        name="gateway",
        num_replicas=settings.gateway_replicas,
        # The gateway refuses above its own limit, in OpenAI's shape; Serve would drop requests with plain text.
        max_ongoing_requests=2 * settings.gateway_max_ongoing_requests,
        max_queued_requests=settings.gateway_max_queued_requests,
        user_config=settings.live(),
        ray_actor_options=settings.actor_options(0.2),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=15,
        logging_config=OWN_LOG_ONLY,
    )
    return gateway.bind(settings_to_dict(settings), handles)


def build_from_config(args: dict[str, Any]) -> Application:
    """The gateway and the models, for `serve deploy`: what `config_settings` makes of `args`."""
    return build(_with_sources(config_settings(args)))


def build_worker_from_config(args: dict[str, Any]) -> Application:
    """The debate worker, for `serve deploy`: what `config_settings` makes of `args`."""
    return _worker(config_settings(args))


def config_settings(args: dict[str, Any]) -> Settings:
    """Settings from the arguments in a Serve configuration file.

    {"settings_file": PATH} takes those that a stack runs with, which `aifactory up` wrote, secrets included; every other
    name is a setting and wins over the file. Without it they are as for `up`: {"config": "gpu-cluster"}, and the
    environment of the Ray node fills the rest. Raises FileNotFoundError on a node that does not have the file.
    """
    given = dict(args)
    file = given.pop("settings_file", None)
    if file is None:
        return Settings(**given)
    try:
        known = json.loads(Path(str(file)).read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"settings_file {file} does not exist on this node: only the machine where `aifactory up` ran has it. Deploy to "
            "the cluster of that machine, put the file at the same path here, or name the settings under args instead, "
            "as in {config: gpu-cluster}"
        ) from error
    return settings_from_dict({**known, **given})


def deploy(settings: Settings) -> None:
    """Deploy both applications on the connected cluster; returns when they run. Raises RuntimeError when one cannot."""
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run_many(
        [
            serve.RunTarget(target=build(settings), name=APP_NAME, route_prefix="/"),
            serve.RunTarget(target=_worker(settings), name=WORKER_APP_NAME, route_prefix=None),
        ]
    )


def replica_stats(settings: Settings) -> list[dict[str, Any]]:
    """`{model, replica, running, waiting}` of every replica, read from the engines. Ray must be connected."""
    return asyncio.run(ServeReplicas(settings).stats())


def _worker(settings: Settings) -> Application:
    build_worker: Callable[[Settings], Application] = import_module(_WORKER_BUILDER).build
    return build_worker(settings)


def _with_sources(settings: Settings) -> Settings:
    """Models that come as a package are made ready on this node, as `aifactory up` does before it deploys."""
    state_dir = settings.state_dir.resolve()
    models = []
    for model in settings.models:
        if (model.source or "").startswith("package:"):
            resolve: Callable[[str, Path, Path], str] = import_module(_MODEL_FILES).resolve_model
            source = resolve(model.source or "", state_dir / "models", state_dir / "logs" / "model.log")
            models.append(model.model_copy(update={"source": source}))
        else:
            models.append(model)
    return settings.model_copy(update={"state_dir": state_dir, "models": models})
