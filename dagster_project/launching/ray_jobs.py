"""Dagster runs as Ray jobs, through dagster_ray's RayRunLauncher: any job of the UI, and debates with debate_launch: ray."""

import asyncio
import shlex
import sys
import time
from typing import Any, Final

from dagster_ray.core.run_launcher import RayRunLauncher
from ray.dashboard.utils import get_address_for_submission_client

from dagster_project.home import LAUNCHED_BY, RAY, dagster_dir
from dagster_project.running.runner import DebateRunner
from serve_app.errors import Unavailable
from serve_app.runs import Run
from serve_app.settings import Settings

# A Ray job starts with the node's environment; what is named here is taken from ours. Without PATH, `dagster` is not found;
# without the login, the job cannot join its own cluster. The token itself stays out: Ray logs and shows what is named here.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "AIFACTORY_CONFIG")


def ray_launcher(settings: Settings, **environment: str) -> RayRunLauncher:
    """A launcher for the stack's Ray cluster; `environment` joins that of its jobs. Register an instance with it.

    Raises errors.Unavailable when the cluster does not tell its dashboard's address.
    """
    known = {"DAGSTER_HOME": dagster_dir(settings), "AIFACTORY_STATE_DIR": settings.state_dir.resolve(), **environment}
    try:
        address = get_address_for_submission_client(settings.ray_address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Unavailable(f"the Ray cluster {settings.ray_address} cannot be reached: {error}") from error
    return RayRunLauncher(address, env_vars=[*_ENVIRONMENT, *(f"{name}={value}" for name, value in known.items())])


class RayStarter:
    """Each debate a Ray job of its own, on the head node: see starters.Starter.

    The Dagster run is made here, so that the job carries its name; the entrypoint executes that run.
    """

    def __init__(self, settings: Settings, runner: DebateRunner) -> None:
        self._settings = settings
        self._runner = runner

    async def start(self, run: Run) -> None:
        """See Starter. Takes about a second."""
        try:
            # Ray's client of jobs has no bound of its own.
            async with asyncio.timeout(self._settings.launch_timeout_s):
                await asyncio.to_thread(self._start, run)
        except TimeoutError as error:
            told = f"the Ray cluster's dashboard took no job within {self._settings.launch_timeout_s:g} s"
            raise Unavailable(told) from error

    def _start(self, run: Run) -> None:
        taken = self._runner.begin(run)
        self._runner.instance.add_run_tags(taken.run_id, {LAUNCHED_BY: RAY})
        launcher: Any = ray_launcher(self._settings, TRACE_ID=run.trace_id)
        launcher.register_instance(self._runner.instance)
        # A run may be launched twice, a job's name be used once.
        submission_id = f"debate-{run.trace_id}-{time.time_ns() // 1_000_000}"
        entrypoint = f"{shlex.quote(sys.executable)} -m dagster_project.entrypoints.run_debate"
        try:
            launcher._launch_ray_job(submission_id, entrypoint, taken)
        except (ConnectionError, RuntimeError) as error:
            raise Unavailable(f"the debate's Ray job could not be submitted: {error}") from error
