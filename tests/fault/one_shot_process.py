"""A debate's own process, with scripted replicas: `python -m tests.fault.one_shot_process SETTINGS.json HANGING-TASKS`."""

import json
import sys
from pathlib import Path

from dagster_project.entrypoints.run_debate import main
from serve_app.settings import settings_from_dict
from tests.integration.dagster_stand import Script, ScriptedReplicas

if __name__ == "__main__":
    settings_file, tasks = sys.argv[1:]
    replicas = ScriptedReplicas(judge=Script(("A",)), **{label: Script(("x",), hangs=True) for label in tasks})
    sys.exit(main(settings_from_dict(json.loads(Path(settings_file).read_text())), replicas))
