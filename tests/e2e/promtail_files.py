"""What deploy/promtail would read of a running stack."""

import glob
import json
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.stack_under_test import RunningStack
from tests.prometheus_files import DEPLOY


def _scrape_configs() -> dict[str, dict[str, Any]]:
    text = (DEPLOY / "promtail" / "promtail.yaml").read_text()
    return {scrape["job_name"]: scrape for scrape in yaml.safe_load(text)["scrape_configs"]}


def promtail_fields() -> set[str]:
    """The keys of our log lines that Promtail takes out."""
    [fields] = [stage["json"]["expressions"] for stage in _scrape_configs()["aifactory"]["pipeline_stages"] if "json" in stage]
    return set(fields.values())


def promtail_reads(stack: RunningStack, job_name: str) -> list[str]:
    """The lines of every file that a scrape configuration matches; each file is matched once."""
    state_dir = Path(stack.info["state_dir"])
    pattern = _scrape_configs()[job_name]["static_configs"][0]["labels"]["__path__"]
    run_dir = json.loads((state_dir / "stack.json").read_text())["run_dir"]
    for name, value in (("AIFACTORY_STATE_DIR", str(state_dir)), ("RAY_PARENT_DIR", run_dir)):
        pattern = pattern.replace(f"${{{name}}}", value)
    paths = [Path(found) for found in glob.glob(pattern)]  # noqa: PTH207 - as Promtail does, from the root
    assert len({path.resolve() for path in paths}) == len(paths)
    return [line for path in paths for line in path.read_text(errors="replace").splitlines()]
