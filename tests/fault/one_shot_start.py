"""The stand-in for `systemctl start`: starts a debate's own process.

python -m tests.fault.one_shot_start SETTINGS.json HANGING-TASKS TRACE_ID

starts tests.fault.one_shot_process, detached, writes its process id into TRACE_ID.pids beside the settings and returns at
once. The second start of a run hangs no more.
"""

import subprocess
import sys
from pathlib import Path

from serve_app.local.processes import child_environment

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
    settings_file, tasks, run = sys.argv[1:]
    start(Path(settings_file), tasks, run)
