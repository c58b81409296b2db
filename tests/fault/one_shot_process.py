"""A debate's own process with scripted replicas, and the stand-in for `systemctl start` that starts it.

python -m tests.fault.one_shot_process SETTINGS.json HANGING-TASKS TRACE_ID

starts the entrypoint for the run, detached, writes its process id into TRACE_ID.pids beside the settings and returns at
once. The second start of a run hangs no more.
"""

import json
import subprocess
import sys
from pathlib import Path

from dagster_project.entrypoints.run_debate import main
from serve_app.local.processes import child_environment
from serve_app.settings import settings_from_dict
from tests.integration.dagster_stand import Script, ScriptedReplicas

ROOT = Path(__file__).resolve().parents[2]


def start(file: Path, hanging: str, trace_id: str) -> None:
    pids = file.with_name(f"{trace_id}.pids")
    again = pids.exists()
    with pids.open("a") as told, file.with_name(f"{trace_id}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.one_shot_process", str(file), "" if again else hanging],
            env=child_environment({"TRACE_ID": trace_id}),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        told.write(f"{process.pid}\n")


if __name__ == "__main__":
    settings_file, tasks, *run = sys.argv[1:]
    if run:
        start(Path(settings_file), tasks, run[0])
        sys.exit(0)
    replicas = ScriptedReplicas(judge=Script(("A",)), **{label: Script(("x",), hangs=True) for label in tasks})
    sys.exit(main(settings_from_dict(json.loads(Path(settings_file).read_text())), replicas))
