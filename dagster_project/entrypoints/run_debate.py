"""One debate in a process of its own: `TRACE_ID=… python -m dagster_project.entrypoints.run_debate`.

Started by a worker, through systemd or as a Ray job, for a run that the worker left in the table `launches`. Exit code 0:
the log holds the run's end, whatever end that is. 1: it does not, and the run will be taken up again. 2: asked wrongly.
"""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings

from dagster_project.embedder import OnDemandEmbedder
from dagster_project.home import SETTINGS_FILE, dagster_dir, stored_settings
from dagster_project.running.conductor import Conductor
from dagster_project.running.runner import DebateRunner, OwnedElsewhere
from dagster_project.warm.executor import StepHost
from dagster_project.warm.instance import open_instance
from serve_app.bus.run_json import decode_run
from serve_app.errors import AifactoryError, Unavailable
from serve_app.ports import Replicas
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.telemetry import bound, configure_logging, logger
from serve_app.wiring import Parts, open_parts

ENDED: Final = 0
NOT_ENDED: Final = 1
ASKED_WRONGLY: Final = 2
_STOP_S: Final = 30.0


class _Asked(BaseSettings):
    """What the environment says."""

    trace_id: str = Field(pattern="^[0-9a-f]{32}$", validation_alias="TRACE_ID")


def stack_settings() -> Settings:
    """The settings of the stack in AIFACTORY_STATE_DIR, as `aifactory up` stored them; else those of the environment."""
    settings = Settings()
    folder = dagster_dir(settings)
    return stored_settings(str(folder)) if (folder / SETTINGS_FILE).is_file() else settings


async def run_debate(settings: Settings, trace_id: str, replicas: Replicas | None = None) -> int:
    """Execute the launched run to its end; returns the exit code. `replicas`: others than those of the Ray cluster."""
    with bound(trace_id):
        async with AsyncExitStack() as stack:
            parts = await open_parts(settings, name="debate", with_embedder=False)
            stack.push_async_callback(parts.close)
            run = await _launched(parts, trace_id)
            if run is None:
                return await _not_launched(parts, trace_id)
            if replicas is None:
                await asyncio.to_thread(_join_cluster, settings)
                replicas = parts.replicas
            conductor = Conductor(
                settings,
                store=parts.store,
                bus=parts.bus,
                replicas=replicas,
                runner=await _open_runner(settings, stack),
                runs=1,
            )
            stack.push_async_callback(conductor.close)
            await conductor.start()
            return await _until_end(parts, conductor, run, settings)


async def _until_end(parts: Parts, conductor: Conductor, run: Run, settings: Settings) -> int:
    wait_s: float | None = 0
    while wait_s is not None:
        await asyncio.sleep(wait_s)
        try:
            # It may have been begun before: by a process that systemd restarts, or by one that the queue gave up on.
            wait_s = await conductor.work(run, resumed=True, last=False)
        except OwnedElsewhere:
            # Another process of the same run, which is to end it; or one that is dead, and whose lock is free in a moment.
            logger.warning("run is executed elsewhere; looking again later")
            wait_s = settings.lease_s / 3 if run.seconds_left + settings.lease_s > 0 else None
    record = await parts.store.find(run.trace_id)
    if record is not None and not record.status.terminal:
        return NOT_ENDED
    await parts.launches.drop(run.trace_id)
    return ENDED


async def _launched(parts: Parts, trace_id: str) -> Run | None:
    found = await parts.launches.find(trace_id)
    return None if found is None else decode_run(found)


async def _not_launched(parts: Parts, trace_id: str) -> int:
    record = await parts.store.find(trace_id)
    if record is not None and record.status.terminal:
        logger.info("run has ended already", status=record.status.value)
        return ENDED
    logger.error("no launched run has this trace_id: a worker with debate_launch ray or systemd launches runs")
    return ASKED_WRONGLY


async def _open_runner(settings: Settings, stack: AsyncExitStack) -> DebateRunner:
    instance = await asyncio.to_thread(open_instance, settings)
    stack.push_async_callback(asyncio.to_thread, instance.dispose)
    host = StepHost(asyncio.get_running_loop(), steps=settings.tasks_per_run, steps_per_run=settings.tasks_per_run)
    stack.callback(host.close)
    embedder = OnDemandEmbedder(settings)
    stack.callback(embedder.close)
    return await asyncio.to_thread(partial(DebateRunner, instance, host, embed=embedder.embed))


def _join_cluster(settings: Settings) -> None:
    """Connect to Ray, where the replicas are. Raises errors.Unavailable."""
    import ray

    try:
        ray.init(address=settings.ray_address or "auto", log_to_driver=False, logging_level="WARNING", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError) as error:
        raise Unavailable(f"the Ray cluster {settings.ray_address or 'auto'} cannot be reached: {error}") from error


async def _stoppable(settings: Settings, trace_id: str, replicas: Replicas | None) -> int:
    """SIGTERM hands the run back: it is not ended, and is taken up again."""
    work = asyncio.get_running_loop().create_task(run_debate(settings, trace_id, replicas), name="debate")
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        logger.warning("stopped before the end of the run", trace_id=trace_id)
        return NOT_ENDED


def main(settings: Settings | None = None, replicas: Replicas | None = None) -> int:
    """The process: returns its exit code."""
    try:
        trace_id = _Asked().trace_id
        settings = settings or stack_settings()
    except (ValueError, OSError) as error:
        # A validation error would quote what was given, passwords among it.
        faults = error.errors() if isinstance(error, ValidationError) else ()
        wrong = "; ".join(f"{fault['loc']}: {fault['msg']}" for fault in faults) or error
        sys.stderr.write(f"set TRACE_ID to the run's 32 hex digits, and AIFACTORY_STATE_DIR to its stack: {wrong}\n")
        return ASKED_WRONGLY
    configure_logging(settings.log_level, component="debate")
    try:
        return asyncio.run(_stoppable(settings, trace_id, replicas))
    except AifactoryError as error:
        logger.error("the run could not be taken to its end", trace_id=trace_id, error=error.message)
        return NOT_ENDED


if __name__ == "__main__":
    sys.exit(main())
