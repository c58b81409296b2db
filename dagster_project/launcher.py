"""What Dagster's UI may do with runs: a debate goes to the workers and is stopped by them, other jobs run beside the page
or as Ray jobs (setting heavy_jobs).
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final

from dagster import DagsterEvent, DagsterEventType
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import DagsterRun

from dagster_project.home import DEBATE_JOB, LAUNCHED_BY, RAY, stored_settings
from dagster_project.launching.ui_debate import asked_in, cancel, submit
from serve_app.errors import AifactoryError
from serve_app.settings import Settings

_REACH_S: Final = 15.0


class WarmRunLauncher(DefaultRunLauncher):
    """The run launcher of webserver and daemon.

    It offers Dagster's run monitoring no health check (supports_check_run_worker_health stays False), so that
    monitoring never fails a debate for want of a process: the queue brings it again when its worker dies.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Raises DagsterLaunchFailedError for a debate without a question, or when the workers cannot be reached."""
        run = context.dagster_run
        settings = stored_settings(self._instance.root_directory)
        if run.job_name == DEBATE_JOB:
            self._launch_debate(run, settings)
        elif settings.heavy_jobs == "ray":
            self._instance.add_run_tags(run.run_id, {LAUNCHED_BY: RAY})
            self._ray.launch_run(context)
        else:
            super().launch_run(context)

    def _launch_debate(self, run: DagsterRun, settings: Settings) -> None:
        """Hand the debate to the workers: they execute this very run. Blocks shortly."""
        try:
            asked = asked_in(run, settings)
            # Of a run that is executed again they are the first one's until now. The worker adds the others.
            self._instance.add_run_tags(
                run.run_id, {"trace_id": asked.trace_id, "req_id": asked.req_id, "project": asked.project}
            )
            # Until a worker takes it the page shows it as queued, which it is; Dagster terminates no run that is `starting`.
            queued = DagsterEvent(DagsterEventType.PIPELINE_ENQUEUED.value, run.job_name, message=f"trace_id {asked.trace_id}")
            self._instance.report_dagster_event(queued, run_id=run.run_id)
            _run_apart(submit(asked, settings))
        except AifactoryError as error:
            raise DagsterLaunchFailedError(error.message) from error  # type: ignore[no-untyped-call]
        except TimeoutError as error:
            why = f"the workers' queue was not reached within {_REACH_S:g} s; are Postgres and NATS up?"
            raise DagsterLaunchFailedError(why) from error  # type: ignore[no-untyped-call]

    def terminate(self, run_id: str) -> bool:
        """Ask the worker of a debate to stop it; the worker reports CANCELING and CANCELED. Blocks shortly.

        Raises errors.Unavailable when neither Postgres nor NATS took the request: then nothing has changed.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.job_name != DEBATE_JOB:
            by_ray = run is not None and run.tags.get(LAUNCHED_BY) == RAY
            return bool(self._ray.terminate(run_id) if by_ray else super().terminate(run_id))  # type: ignore[no-untyped-call]
        trace_id = run.tags.get("trace_id")
        if run.is_finished or trace_id is None:
            return False
        # Not before the message is out: a run that shows CANCELING must have been told. And not after it either: the
        # worker may have ended the run by then. So the worker itself reports it.
        self._instance.report_engine_event("Terminate: the worker is asked to stop this run", run, cls=type(self))
        _run_apart(cancel(trace_id, "terminated in the Dagster UI", stored_settings(self._instance.root_directory)))
        return True

    @cached_property
    def _ray(self) -> Any:
        from dagster_project.launching.ray_jobs import ray_launcher  # it imports Ray, which most stacks do not need here

        launcher = ray_launcher(stored_settings(self._instance.root_directory))
        launcher.register_instance(self._instance)
        return launcher


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread and loop of its own: the caller may be on an event loop already. Raises TimeoutError."""

    async def bounded() -> None:
        async with asyncio.timeout(_REACH_S):
            await work

    with ThreadPoolExecutor(1, thread_name_prefix="reach workers") as thread:
        thread.submit(asyncio.run, bounded()).result()
