"""The job `sweep`: ends abandoned runs from Dagster, for a stack whose workers are all gone.

The warm workers sweep by themselves, for the price of one indexed query. As a Dagster job each sweep is a process of
its own that takes seconds of CPU to start, so the schedule is off until an operator turns it on.
"""

import asyncio
import time
from functools import partial
from typing import Final

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultScheduleStatus,
    Failure,
    OpExecutionContext,
    RunsFilter,
    ScheduleDefinition,
    job,
    op,
)

from dagster_project.home import DEBATE_JOB, stored_settings
from serve_app.lifecycle.sweep import Sweeper
from serve_app.ports import RunRecord, RunStore
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from serve_app.telemetry import logger

_MOST_WATCHES: Final = 3
_ORPHANS: Final = 200  # runs looked at in one go
_OPEN: Final = (
    DagsterRunStatus.QUEUED,  # launched in the UI
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
)


async def end_dagster_run(instance: DagsterInstance, record: RunRecord) -> None:
    """Let Dagster know that an abandoned run has ended: its own process cannot say so any more. Does not raise."""
    try:
        await asyncio.to_thread(_end_of, instance, record)
    except Exception as error:  # noqa: BLE001 - Dagster's record is only a view of the run; the sweep goes on
        logger.opt(exception=error).warning("Dagster was not told of an abandoned run", trace_id=record.trace_id)


def _end_of(instance: DagsterInstance, record: RunRecord) -> None:
    run = instance.get_run_by_id(record.dagster_run_id) if record.dagster_run_id else None
    if run is not None and not run.is_finished:
        _report_end(instance, run, record)


def _report_end(instance: DagsterInstance, run: DagsterRun, record: RunRecord) -> None:
    """Say in Dagster how the log says that a run ended whose worker could not say so."""
    match record.status:
        case RunStatus.CANCELLED:
            instance.report_run_canceled(run, "its worker fell silent; the log says that it was cancelled")
        case RunStatus.SUCCEEDED:
            # The answer was given and yet the job broke off: of its steps Dagster can only say that they did not end.
            instance.report_run_failed(run, "its worker fell silent after the answer was recorded; the log has the answer")
        case _:
            instance.report_run_failed(run, "its worker fell silent; the log says that it failed")


async def end_orphans(instance: DagsterInstance, store: RunStore, *, quiet_s: float) -> int:
    """End Dagster's runs whose run in the log ended at least `quiet_s` ago without their noticing; how many.

    The log is the truth, Dagster's record a view of it that a killed worker leaves behind, whoever ended the run since.
    """
    runs = await asyncio.to_thread(instance.get_runs, RunsFilter(job_name=DEBATE_JOB, statuses=list(_OPEN)), None, _ORPHANS)
    ended = 0
    for run in runs:
        record = await store.find(run.tags.get("trace_id", ""))
        if record is None or not record.status.terminal or record.updated_at > time.time() - quiet_s:
            continue
        await asyncio.to_thread(_report_end, instance, run, record)
        ended += 1
    return ended


async def keep_ending_orphans(instance: DagsterInstance, store: RunStore, *, interval_s: float) -> None:
    """Look for orphans for ever; the caller cancels it."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await end_orphans(instance, store, quiet_s=interval_s)
        except Exception as error:  # noqa: BLE001 - one bad look must not be the last; the log has the cause
            logger.opt(exception=error).warning("Dagster's orphaned runs were not looked for")


async def watch_and_sweep(settings: Settings, instance: DagsterInstance) -> int:
    """Watch until leases can be taken at their word, then end what is abandoned; how many runs that were.

    Raises TimeoutError when Postgres or NATS does not stay long enough.
    """
    from serve_app.wiring import open_parts

    parts = await open_parts(settings, name="sweep", with_embedder=False)
    try:
        on_ended = partial(end_dagster_run, instance)
        sweeper = Sweeper(lambda: settings, store=parts.store, bus=parts.bus, queue=parts.queue, on_ended=on_ended)
        ended = 0
        async with asyncio.timeout(_MOST_WATCHES * (settings.lease_s + settings.queue_ack_wait_s)):
            while True:
                watching = sweeper.watching
                ended += await sweeper.sweep()
                if not watching:
                    return ended
                await asyncio.sleep(sweeper.interval_s)
    finally:
        await parts.close()


@op(description="End runs whose owner fell silent; takes a lease's time to be sure")
def end_abandoned_runs(context: OpExecutionContext) -> None:
    settings = stored_settings(context.instance.root_directory)
    try:
        ended = asyncio.run(watch_and_sweep(settings, context.instance))
    except TimeoutError as error:
        raise Failure("Postgres or NATS was away for too long to tell abandoned runs from others; run it again") from error
    context.log.info(f"{ended} abandoned runs ended")


@job(name="sweep", description="End runs whose worker or gateway is gone")
def sweep_job() -> None:
    end_abandoned_runs()


sweep_schedule = ScheduleDefinition(
    name="sweep_every_five_minutes",
    job=sweep_job,
    cron_schedule="*/5 * * * *",
    default_status=DefaultScheduleStatus.STOPPED,
    description="Off: the warm workers sweep by themselves. Turn it on where no worker may be left.",
)
