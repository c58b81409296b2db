"""What a gateway does for the runs it executes, beside executing them: it keeps their leases, and records ends late."""

import asyncio
from collections import deque

from serve_app.errors import Unavailable
from serve_app.lifecycle.local_runs import LocalRuns
from serve_app.ports import RunStore
from serve_app.runs import Outcome, Run
from serve_app.telemetry import logger


class RunUpkeep:
    """Run it as a task for as long as the gateway lives. `most`: late ends that are kept, in runs."""

    def __init__(self, store: RunStore, local_runs: LocalRuns, *, lease_s: float, most: int) -> None:
        self._store = store
        self._local_runs = local_runs
        self._lease_s = lease_s
        # Ends that were said while the log was away, to be recorded when it is back: else a sweeper says another.
        self._unrecorded: deque[tuple[Run, Outcome]] = deque(maxlen=most)

    def record_later(self, run: Run, outcome: Outcome) -> None:
        """The log was away when the run ended."""
        self._unrecorded.append((run, outcome))

    async def run(self) -> None:
        """For ever; the caller cancels it."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            await self._record_late()
            trace_ids = self._local_runs.leased()
            if not trace_ids:
                continue
            try:
                leases = await self._store.extend_leases(trace_ids, lease_s=self._lease_s)
            except Exception as error:  # noqa: BLE001 - this loop keeps every run here alive; it must outlive any fault
                logger.warning("leases not extended", error=str(error), runs=len(trace_ids))
                continue
            for trace_id in set(trace_ids) - leases.ours:
                self._local_runs.stop(trace_id, "another owner took the run over")
            for trace_id, reason in leases.cancels.items():  # their message did not reach us
                self._local_runs.stop(trace_id, reason)

    async def _record_late(self) -> None:
        """One end that can never be recorded holds up nothing."""
        while self._unrecorded:
            run, outcome = self._unrecorded[0]
            try:
                await self._store.settle(run, outcome)
            except Unavailable:
                return
            except Exception as error:  # noqa: BLE001 - leases are kept after this; the log has the cause
                logger.opt(exception=error).error("an end could not be recorded", trace_id=run.trace_id)
            self._unrecorded.popleft()
