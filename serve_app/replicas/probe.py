"""Asks every replica of a deployment how it stands, past its queue."""

import asyncio
from typing import Any, Final

import ray
from ray.exceptions import RayError

from serve_app.settings import APP_NAME
from serve_app.telemetry import gauge, logger

STATS_KEY: Final = "aifactory"
_SERVE_NAMESPACE: Final = "serve"


def hook_answer(row: dict[str, Any]) -> dict[str, Any]:
    """What a replica answers to the hook that Serve's controller polls; the load goes to the metrics as well."""
    gauge("aifactory_engine_running", row["running"], model=row["model"])
    gauge("aifactory_engine_waiting", row["waiting"], model=row["model"])
    return {STATS_KEY: row}


async def replica_stats(deployment: str) -> list[dict[str, Any]]:
    """`{model, replica, running, waiting}` of each replica that answers.

    A call through a handle, a broadcast too, waits until the replica has a free place, which is just when the numbers
    are wanted. So this calls the hook that Serve's controller polls, on the replica's actor. Raises RayError when the
    cluster is away. Sets no timeout of its own.
    """
    names = await asyncio.to_thread(_replica_actors, deployment)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_stats_of(name)) for name in names]
    return [row for task in tasks if (row := task.result()) is not None]


def _replica_actors(deployment: str) -> list[str]:
    prefix = f"SERVE_REPLICA::{APP_NAME}#{deployment}#"
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in actors if a["namespace"] == _SERVE_NAMESPACE and a["name"].startswith(prefix))


async def _stats_of(name: str) -> dict[str, Any] | None:
    try:
        actor = await asyncio.to_thread(ray.get_actor, name, namespace=_SERVE_NAMESPACE)
        hook = await actor.record_routing_stats.remote()
    except (RayError, ValueError) as error:  # ValueError: it went away just now
        logger.debug("replica {} does not answer: {}: {}", name, type(error).__name__, error)
        return None
    row = hook.get(STATS_KEY)
    return row if isinstance(row, dict) else None
