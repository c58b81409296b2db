"""Hands each run to a process of its own, and keeps its place in the queue until the log holds the run's end.

The process keeps the run's lease while it lives. So the lease tells all there is to know about it: one that is not
extended any more means that the process is gone, or never came. Then the run goes back to the queue, which brings it
again, here or to another worker.
"""

import asyncio
import time
from typing import Final

from dagster_project.launching.starters import CommandStarter, Starter
from dagster_project.running.ends import end_unstarted, give_up, let_wait, tell_later, wait_out
from dagster_project.running.runner import DebateRunner, OwnedElsewhere
from serve_app.bus.run_json import encode_run
from serve_app.errors import Unavailable
from serve_app.ports import EventBus, RunRecord, RunStore
from serve_app.runs import Run
from serve_app.settings import Settings
from serve_app.spans import waited
from serve_app.store.launches import PostgresLaunches
from serve_app.telemetry import logger, observe
from serve_app.wiring import Parts

_LONGEST_LOOK_S: Final = 1.0


class Dispatcher:
    """The hands of a worker whose debates have processes of their own."""

    def __init__(
        self, settings: Settings, *, store: RunStore, bus: EventBus, launches: PostgresLaunches, starter: Starter
    ) -> None:
        self._settings = settings
        self._store = store
        self._bus = bus
        self._launches = launches
        self._starter = starter
        # A process extends its lease when two thirds of it are left. With half of it left it has missed that.
        self._dead_below_s = settings.lease_s / 2
        self._look_s = min(settings.lease_s / 8, _LONGEST_LOOK_S)
        self._watched: set[str] = set()

    def reconfigure(self, settings: Settings) -> None:
        """Nothing to take over here: each process reads the settings that `aifactory up` stored, or its environment's."""

    async def start(self) -> None:
        """Nothing to begin: prompts of runs that ended unwatched are forgotten by the sweeper's purge."""

    def stop_hearing(self) -> None:
        """Nothing to stop: the processes hear cancels themselves, and outlive this worker."""

    async def close(self) -> None:
        """Nothing to close: whoever watches a run is cancelled by the pull loop."""

    async def work(self, run: Run, *, resumed: bool, last: bool) -> float | None:
        """Start the run's process unless it has one, and watch until the run has ended. See pull_loop.Hands."""
        if run.trace_id in self._watched:
            raise OwnedElsewhere("run is watched here already: it was delivered again for want of a heartbeat")
        self._watched.add(run.trace_id)

        async def attempt(again: bool) -> float | None:
            return await self._work(run, resumed=resumed or again)

        try:
            return await wait_out(attempt, self.let_wait, run, longest_s=self._settings.lease_s / 3)
        finally:
            self._watched.discard(run.trace_id)

    async def _work(self, run: Run, *, resumed: bool) -> float | None:
        record = await self._store.find(run.trace_id)
        if record is None or not _to_execute(record, run):
            logger.info("run needs no work", status=record.status.value if record else "unknown")
        elif resumed and self._alive(record) and await self._launches.has_process(run.trace_id):
            logger.info("run has a process already")
        elif not await end_unstarted(self._store, self._bus, run, record):
            observe("aifactory_queue_seconds", max(0.0, time.time() - run.started))
            waited(run, again=resumed)
            await self._launch(run)
        return await self._watch(run)

    async def let_wait(self, run: Run) -> None:
        """The run will be delivered again; one whose process lives keeps its lease."""
        if not await self._has_process(run):
            await let_wait(self._store, run, lease_s=self._settings.lease_s)

    async def give_up(self, run: Run, tries: int) -> None:
        """The last process came to nothing. One that lives, while this worker goes, ends its run by itself."""
        if not await self._has_process(run):
            await give_up(self._store, self._bus, run, tries)
            await self._forget(run)

    async def _has_process(self, run: Run) -> bool:
        try:
            return await self._launches.has_process(run.trace_id)
        except Unavailable as error:
            logger.warning("it is not known whether the run has a process: it is left alone", error=error.message)
            return True

    async def _launch(self, run: Run) -> None:
        """Start the process. Raises errors.Unavailable when it cannot be started, OwnedElsewhere when there is one."""
        # The lease first: a row beside the long lease of a run that waits would pass for a process that lives.
        until_dead_s = min(self._settings.launch_timeout_s, max(0.0, run.seconds_left)) + self._dead_below_s
        await self._store.extend_leases([run.trace_id], lease_s=until_dead_s)
        await self._launches.put(run.trace_id, encode_run(run))
        try:
            await self._starter.start(run)
        except OwnedElsewhere:
            raise  # so it has a process
        except Exception:
            await self._launches.mark_silent(run.trace_id)
            raise
        logger.info("debate launched in a process of its own", by=self._settings.debate_launch)

    async def _watch(self, run: Run) -> float | None:
        while True:
            try:
                record = await self._store.find(run.trace_id)
                if not _to_execute(record, run):
                    await self._ended(run, record)
                    return None
                if not self._alive(record):
                    logger.warning("the debate's own process fell silent, or did not come in time")
                    await self._launches.mark_silent(run.trace_id)
                    return 0
            except Unavailable as error:
                logger.warning("the log is away: the debate's process cannot be watched", error=error.message)
                await asyncio.sleep(self._settings.lease_s)  # nor could it keep its lease: it gets time to do so
            await asyncio.sleep(self._look_s)

    async def _ended(self, run: Run, record: RunRecord | None) -> None:
        """Its process has recorded the end; tell it if that process could not. Raises errors.Unavailable."""
        if record is not None and record.status.terminal:
            while (wait_s := self._untold_s(record)) > 0:
                await asyncio.sleep(min(wait_s, self._look_s))
                record = await self._store.find(run.trace_id) or record
            await tell_later(self._store, self._bus, record, patience_s=0)
        await self._forget(run)

    def _untold_s(self, record: RunRecord) -> float:
        """How much longer its process has to tell the end itself."""
        return 0.0 if record.told else record.updated_at + self._settings.queue_ack_wait_s - time.time()

    def _alive(self, record: RunRecord | None) -> bool:
        return record is not None and record.lease_until - time.time() > self._dead_below_s

    async def _forget(self, run: Run) -> None:
        try:
            await self._launches.drop(run.trace_id)
        except Unavailable as error:
            logger.warning("a launched run is forgotten later", error=error.message)


def open_dispatcher(settings: Settings, parts: Parts, runner: DebateRunner) -> Dispatcher | None:
    """The dispatcher that the settings want; None: the worker executes its debates itself."""
    if settings.debate_launch == "warm":
        return None
    return Dispatcher(settings, store=parts.store, bus=parts.bus, launches=parts.launches, starter=_starter(settings, runner))


def _starter(settings: Settings, runner: DebateRunner) -> Starter:
    if settings.debate_launch == "systemd":
        return CommandStarter(settings)
    from dagster_project.launching.ray_jobs import RayStarter  # imports Ray's client of jobs, for this way only

    return RayStarter(settings, runner)


def _to_execute(record: RunRecord | None, run: Run) -> bool:
    return record is not None and not record.status.terminal and record.attempt <= run.attempt
