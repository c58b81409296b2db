"""Dagster's folder (DAGSTER_HOME) and its two processes: the web server and the daemon."""

import json
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import httpx
import yaml

from serve_app.local.files import write_private
from serve_app.local.processes import ProcessRecord, is_alive, last_lines, spawn
from serve_app.settings import Settings

DEFINITIONS = "dagster_project.definitions"
# By name, not by import: serving does not depend on Dagster; only the start-up asks it for its configuration.
_CONFIGURATION = "dagster_project.home"


class DagsterError(RuntimeError):
    """The Dagster web server or daemon could not be started."""


def database_name() -> str:
    """The database, on the stack's Postgres, that holds Dagster's records."""
    return str(import_module(_CONFIGURATION).DATABASE)


def home_dir(settings: Settings) -> Path:
    """What DAGSTER_HOME is set to."""
    return Path(import_module(_CONFIGURATION).dagster_dir(settings))


def write_home(settings: Settings) -> Path:
    """Write dagster.yaml, workspace.yaml and the settings; return their folder. They hold passwords: owner only."""
    home = home_dir(settings)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    workspace = {"load_from": [{"python_module": {"module_name": DEFINITIONS, "location_name": "aifactory"}}]}
    write_private(home / "dagster.yaml", import_module(_CONFIGURATION).dagster_yaml(settings))
    write_private(home / import_module(_CONFIGURATION).SETTINGS_FILE, import_module(_CONFIGURATION).settings_json(settings))
    write_private(home / "workspace.yaml", yaml.safe_dump(workspace, sort_keys=False))
    return home


@dataclass(frozen=True)
class DagsterUi:
    """Web server and daemon over one DAGSTER_HOME."""

    home: Path
    host: str
    port: int
    logs: Path
    env: dict[str, str]

    @property
    def url(self) -> str:
        """Where the web server answers."""
        return f"http://{self.host}:{self.port}"

    def launch_web(self) -> ProcessRecord:
        """Start the web server's process."""
        command = ["dagster-webserver", "-h", self.host, "-p", str(self.port), "-w", str(self.home / "workspace.yaml")]
        return spawn(command, env=self.env, log=self.web_log, cwd=self.home)

    def launch_daemon(self) -> ProcessRecord:
        """Start the daemon (schedules and sensors)."""
        command = ["dagster-daemon", "run", "-w", str(self.home / "workspace.yaml")]
        return spawn(command, env=self.env, log=self.daemon_log, cwd=self.home)

    @property
    def web_log(self) -> Path:
        """The web server's log."""
        return self.logs / "dagster-webserver.log"

    @property
    def daemon_log(self) -> Path:
        """The daemon's log."""
        return self.logs / "dagster-daemon.log"

    def wait(self, web: ProcessRecord, daemon: ProcessRecord, timeout_s: float = 120.0) -> None:
        """Wait until the web server answers and the daemon has not ended. Raises DagsterError with the log's end."""
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if not is_alive(web):
                raise DagsterError(f"the Dagster web server ended; log {self.web_log}:\n{last_lines(self.web_log)}")
            if time.monotonic() > deadline:
                raise DagsterError(
                    f"Dagster did not answer at {self.url} within {timeout_s:.0f} s; "
                    f"log {self.web_log}:\n{last_lines(self.web_log)}"
                )
            time.sleep(0.2)
        if not is_alive(daemon):
            raise DagsterError(f"the Dagster daemon ended; log {self.daemon_log}:\n{last_lines(self.daemon_log)}")

    def _answers(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/server_info", timeout=2, trust_env=False)
            return answer.status_code == 200 and "dagster_version" in json.loads(answer.text)
        except (httpx.HTTPError, ValueError):
            return False
