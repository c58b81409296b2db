"""Simulated replicas on a real Ray Serve, and the faults they get."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openai
import pytest
import ray
from ray import serve

from serve_app.configured import ModelConfig, SimulatedConfig
from serve_app.replicas.catalog import deployment_name
from serve_app.replicas.client import ServeReplicas
from serve_app.replicas.deployment import build_deployment
from serve_app.settings import APP_NAME, Settings

TOKENS = 80


def simulated_model(model_id: str, *, replicas: int = 1, seed: int = 7, **pace: Any) -> ModelConfig:
    """A model whose answers have `TOKENS` tokens unless the request says otherwise."""
    simulated = SimulatedConfig(seed=seed, default_tokens=TOKENS, **pace)
    return ModelConfig(model_id=model_id, engine="simulated", num_cpus=0.1, replicas=replicas, simulated=simulated)


class _Root:
    """Serve wants one deployment at the head of an application."""

    def __init__(self, handles: dict[str, Any]) -> None:
        self._handles = handles


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """Ray on this machine, with Serve once somebody deploys; each module brings its applications and takes them away."""
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


@contextmanager
def replica_cluster(models: Sequence[ModelConfig]) -> Iterator[None]:
    """One deployment per model on the Ray of this process, until the block ends."""
    handles = {model.model_id: build_deployment(model, source_path="") for model in models}
    try:
        serve.run(serve.deployment(_Root).options(num_replicas=1).bind(handles), name=APP_NAME, route_prefix=None)
        yield
    finally:
        serve.delete(APP_NAME)


async def inject(model: str, *faults: dict[str, Any]) -> None:
    """What goes wrong at the model from now on, counted afresh; nothing when no fault is given."""
    handle = serve.get_deployment_handle(deployment_name(model), app_name=APP_NAME)
    await handle.set_faults.remote(list(faults))


async def until_idle(models: Sequence[ModelConfig], *, timeout_s: float = 60) -> None:
    """Wait until no engine of these models works on anything. What hangs or stalls by a fault is idle once it is aborted."""
    replicas = ServeReplicas(Settings(config="simulated", models=list(models)))
    async with asyncio.timeout(timeout_s):
        while any(row["running"] + row["waiting"] for row in await replicas.stats()):
            await asyncio.sleep(0.02)


async def error_of(work: Any, into: list[Any] | None = None) -> openai.APIError | None:
    """What the SDK raises; else None, and the result goes into the list."""
    try:
        result = await work
        if into is not None:
            into.append(result)
    except openai.APIError as error:
        return error
    return None
