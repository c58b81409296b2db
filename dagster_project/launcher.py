"""What Dagster's UI may do with runs: warm debates are stopped over NATS, all other jobs are launched as usual."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from dagster_project.home import DEBATE_JOB, stored_settings
from serve_app.bus.connection import NatsConnection
from serve_app.bus.event_bus import NatsEventBus
from serve_app.errors import Unavailable

_CANCEL_S: Final = 10.0


class WarmRunLauncher(DefaultRunLauncher):
    """The run launcher of webserver and daemon.

    It offers Dagster's run monitoring no health check (supports_check_run_worker_health stays False), so that
    monitoring never fails a debate for want of a process: the queue brings it again when its worker dies.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Raises DagsterLaunchFailedError for a debate: the UI does not know the question."""
        if context.dagster_run.job_name == DEBATE_JOB:
            raise DagsterLaunchFailedError(  # type: ignore[no-untyped-call]
                "a debate is not launched here: ask for it through the API (POST /v1/chat/completions with "
                '"x_route": "workflow"), and the run shows up here'
            )
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """Ask the worker of a debate to stop it; the worker reports CANCELING and CANCELED. Blocks shortly.

        Raises errors.Unavailable when NATS is away: then nothing has changed.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.job_name != DEBATE_JOB:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        trace_id = run.tags.get("trace_id")
        if run.is_finished or trace_id is None:
            return False
        # Not before the message is out: a run that shows CANCELING must have been told. And not after it either: the
        # worker may have ended the run by then. So the worker itself reports it.
        self._instance.report_engine_event("Terminate: the worker is asked over NATS to stop this run", run, cls=type(self))
        _run_apart(self._cancel(trace_id))
        return True

    async def _cancel(self, trace_id: str) -> None:
        """Over a connection of its own: it happens rarely, and this process has no loop that could keep one."""
        settings = stored_settings(self._instance.root_directory)
        if settings.nats_url is None:
            raise Unavailable("nats_url is not set, so the worker cannot be asked to stop the run")
        connection = NatsConnection(settings.nats_url.get_secret_value(), "aifactory-dagster-ui")
        try:
            async with asyncio.timeout(_CANCEL_S):
                await NatsEventBus(connection, mode=settings.bus).publish_cancel(trace_id, "terminated in the Dagster UI")
        finally:
            await connection.close()


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread and loop of its own: the caller may be on an event loop already."""
    with ThreadPoolExecutor(1, thread_name_prefix="cancel") as thread:
        thread.submit(asyncio.run, work).result()
