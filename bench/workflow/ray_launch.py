"""The same way through dagster_ray's RayRunLauncher: a Ray job for each run, up to the start of its first op.

A process of its own, because Ray reads its login from the environment when it is imported. The job is a job of one
empty op, not the debate: the real debate has more to import and an answer to ask for, so the ratio that comes out is
less than the true one.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import yaml
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, reconstructable
from dagster._core.launcher import LaunchRunContext

from bench.workflow.ray_op import one_op
from dagster_project.home import dagster_yaml
from serve_app.local import deployment
from serve_app.local.files import write_private
from serve_app.local.processes import child_environment
from serve_app.local.state import StackState, settings_file
from serve_app.settings import settings_from_dict

_TIMEOUT_S: Final = 180.0
_ROOT: Final = str(Path(__file__).resolve().parents[2])


def write_home(state: StackState, folder: Path, dashboard: str) -> tuple[Path, dict[str, str]]:
    """A DAGSTER_HOME on the stack's Postgres that launches Ray jobs; returns it and the environment it needs."""
    settings = settings_from_dict(json.loads(settings_file(state.state_dir).read_text()))
    home = folder / "ray-launcher"
    home.mkdir(mode=0o700)
    ray = deployment.ray_variables(state)
    env = child_environment({**ray, "DAGSTER_HOME": str(home), "PYTHONPATH": _ROOT})
    needed = ("PATH", "PYTHONPATH", "DAGSTER_HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    config: dict[str, Any] = yaml.safe_load(dagster_yaml(settings))
    config["run_launcher"] = {
        "module": "dagster_ray",
        "class": "RayRunLauncher",
        # Without them the job has neither a login nor the command `dagster`.
        "config": {"ray": {"address": dashboard, "env_vars": [f"{name}={env[name]}" for name in needed if name in env]}},
    }
    config["local_artifact_storage"]["config"]["base_dir"] = str(home)
    config["compute_logs"]["config"]["base_dir"] = str(home / "compute_logs")
    write_private(home / "dagster.yaml", yaml.safe_dump(config))
    return home, env


def _first_op_s(instance: DagsterInstance) -> float:
    """Launch one run; seconds from the call to the start of its op."""
    job = reconstructable(one_op)
    run = instance.create_run_for_job(job_def=job.get_definition(), job_code_origin=job.get_python_origin())
    began = time.time()
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    while True:
        now = instance.get_run_by_id(run.run_id)
        if now is None or (now.is_finished and now.status is not DagsterRunStatus.SUCCESS):
            raise RuntimeError(f"the Ray job of run {run.run_id} failed: {now.status if now else 'its record vanished'}")
        if now.is_finished:
            [start] = instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_START)
            return start.timestamp - began
        if time.time() - began > _TIMEOUT_S:
            raise TimeoutError(f"the Ray job of run {run.run_id} did not end within {_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


if __name__ == "__main__":
    with DagsterInstance.from_config(sys.argv[1]) as opened:
        taken = [_first_op_s(opened) for _ in range(int(sys.argv[2]) + 1)]
    sys.stdout.write(f"\nANSWER {json.dumps(taken[1:])}\n")
