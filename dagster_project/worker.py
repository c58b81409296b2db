"""The warm worker as a Ray Serve deployment: started once, then each debate costs no start-up."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from dagster_project.embedder import OnDemandEmbedder
from dagster_project.launching.dispatcher import open_dispatcher
from dagster_project.running.pull_loop import PullLoop
from dagster_project.running.runner import DebateRunner
from dagster_project.scaling import BACKLOG, number_of_workers
from dagster_project.sweep_job import end_dagster_run, keep_ending_orphans
from dagster_project.warm.executor import StepHost
from dagster_project.warm.instance import open_instance
from serve_app.errors import Unavailable
from serve_app.lifecycle.sweep import Sweeper
from serve_app.live_settings import accepted
from serve_app.settings import Settings, settings_from_dict, settings_to_dict
from serve_app.tasks import TaskOwner
from serve_app.telemetry import configure_logging, logger

DEPLOYMENT: Final = "debate-worker"
_SHUTDOWN_S: Final = 40.0  # what a worker gets after the debates' grace to hand back and close; then Serve kills it


class Worker:
    """Owns the connections, the Dagster instance, the threads and the pull loop of one process."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._open = AsyncExitStack()
        self._given = self._settings = settings_from_dict(settings)
        try:
            await self._start(self._given)
        except BaseException:
            await self._open.aclose()
            raise

    async def _start(self, settings: Settings) -> None:
        from serve_app.wiring import open_parts

        configure_logging(settings.log_level, component="worker")
        parts = await open_parts(settings, name="worker", with_embedder=False)
        self._open.push_async_callback(parts.close)
        self._queue = parts.queue
        self._replicas = parts.replicas
        instance = await asyncio.to_thread(open_instance, settings)
        self._open.push_async_callback(asyncio.to_thread, instance.dispose)
        steps = settings.runs_per_worker * settings.tasks_per_run
        host = StepHost(asyncio.get_running_loop(), steps=steps, steps_per_run=settings.tasks_per_run)
        self._open.callback(host.close)
        embedder = OnDemandEmbedder(settings)
        self._open.callback(embedder.close)
        api_url = f"http://{settings.host}:{settings.port}/v1"
        runner = await asyncio.to_thread(partial(DebateRunner, instance, host, embed=embedder.embed, api_url=api_url))
        await asyncio.to_thread(runner.warm_up)
        self._pulls = PullLoop(
            settings,
            store=parts.store,
            bus=parts.bus,
            queue=parts.queue,
            replicas=parts.replicas,
            runner=runner,
            hands=open_dispatcher(settings, parts, runner),
        )
        self._open.push_async_callback(self._pulls.close, settings.worker_grace_s)
        await self._pulls.start()
        on_ended = partial(end_dagster_run, instance)
        sweeper = Sweeper(lambda: self._settings, store=parts.store, bus=parts.bus, queue=parts.queue, on_ended=on_ended)
        aside = TaskOwner()
        self._open.push_async_callback(aside.close)
        aside.spawn(sweeper.run(), name="sweep")
        orphans = keep_ending_orphans(instance, parts.store, interval_s=settings.lease_s / 3)
        aside.spawn(orphans, name="end orphaned Dagster runs")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over changed live settings, all others being as at the start; calls under way keep the old ones."""
        if (changed := accepted(self._given, user_config)) is not None:
            self._settings = changed
            self._replicas.take(changed)
            self._pulls.reconfigure(changed)

    def check_health(self) -> None:
        """Called by Serve every few seconds. Raises when the worker no longer works."""
        self._pulls.check()

    async def record_autoscaling_stats(self) -> dict[str, int]:
        """For Serve's autoscaling, about once a second: the runs of the queue. Empty when NATS does not say."""
        try:
            return {BACKLOG: await self._queue.backlog()}
        except Unavailable:  # the connection logs its outages
            return {}

    async def shutdown(self) -> None:
        """Finish or hand back what runs, then close everything. Twice is the same as once."""
        logger.info("worker is going")
        await self._open.aclose()

    async def __del__(self) -> None:
        # Serve awaits this when it stops the replica.
        await self.shutdown()


def build(settings: Settings) -> Any:
    """The worker's Serve application; run it without a route: `serve.run(build(settings), name=…, route_prefix=None)`."""
    from ray import serve

    deployment = serve.deployment(
        Worker,
        name=DEPLOYMENT,
        **number_of_workers(settings),
        user_config=settings.live(),
        ray_actor_options=settings.actor_options(0.2),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=settings.worker_grace_s + _SHUTDOWN_S,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(settings_to_dict(settings))
