"""Dagster's folder (DAGSTER_HOME) and its three processes: the code server, and the web server and the daemon that ask it.

Only the code server loads our definitions. It starts the processes of jobs, too. See docs/adr/0030.
"""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import httpx
import yaml

from serve_app.local.files import write_private
from serve_app.local.processes import ProcessRecord, is_alive, last_lines, spawn
from serve_app.local.run_dir import make_private, run_dir_for
from serve_app.settings import Settings

# By name, not by import: serving does not depend on Dagster; only the start-up asks it for its configuration.
_CONFIGURATION = "dagster_project.home"


class DagsterError(RuntimeError):
    """A process of Dagster could not be started."""


def database_name() -> str:
    """The database, on the stack's Postgres, that holds Dagster's records."""
    return str(import_module(_CONFIGURATION).DATABASE)


def home_dir(settings: Settings) -> Path:
    """What DAGSTER_HOME is set to."""
    return Path(import_module(_CONFIGURATION).dagster_dir(settings))


def code_socket(state_dir: Path) -> Path:
    """Where the code server listens: in a folder that is closed to other users, because it asks for no login."""
    return run_dir_for(state_dir.resolve()) / "code-server.sock"


def write_home(settings: Settings) -> Path:
    """Write dagster.yaml, workspace.yaml and the settings; return their folder. They hold passwords: owner only."""
    home = home_dir(settings)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    server = {"socket": str(code_socket(settings.state_dir)), "location_name": import_module(_CONFIGURATION).LOCATION}
    workspace = {"load_from": [{"grpc_server": server}]}
    write_private(home / "dagster.yaml", import_module(_CONFIGURATION).dagster_yaml(settings))
    write_private(home / import_module(_CONFIGURATION).SETTINGS_FILE, import_module(_CONFIGURATION).settings_json(settings))
    write_private(home / "workspace.yaml", yaml.safe_dump(workspace, sort_keys=False))
    return home


@dataclass(frozen=True)
class DagsterUi:
    """Code server, web server and daemon over one DAGSTER_HOME. The last two are launched when the first one answers."""

    home: Path
    host: str
    port: int
    logs: Path
    env: dict[str, str]
    socket: Path

    @property
    def url(self) -> str:
        """Where the web server answers."""
        return f"http://{self.host}:{self.port}"

    def launch_code_server(self) -> ProcessRecord:
        """Start the code server's process. Raises RunDirError if its socket's folder is not ours alone."""
        make_private(self.socket.parent)
        # Its id stays a random one: the page sees by it that a server is another one, and loads its definitions anew.
        command = ["dagster", "api", "grpc", "--socket", str(self.socket), "--inject-env-vars-from-instance"]
        command += ["--module-name", import_module(_CONFIGURATION).DEFINITIONS_MODULE]
        command += ["--location-name", import_module(_CONFIGURATION).LOCATION]
        # A port, which this variable would set, goes before a socket.
        env = {name: value for name, value in self.env.items() if name != "DAGSTER_GRPC_PORT"}
        return spawn(command, env=env, log=self.code_log, cwd=self.home)

    def launch_web(self) -> ProcessRecord:
        """Start the web server's process."""
        command = ["dagster-webserver", "-h", self.host, "-p", str(self.port), "-w", str(self.home / "workspace.yaml")]
        return spawn(command, env=self.env, log=self.web_log, cwd=self.home)

    def launch_daemon(self) -> ProcessRecord:
        """Start the daemon (schedules and sensors)."""
        command = ["dagster-daemon", "run", "-w", str(self.home / "workspace.yaml")]
        return spawn(command, env=self.env, log=self.daemon_log, cwd=self.home)

    @property
    def code_log(self) -> Path:
        """The code server's log."""
        return self.logs / "dagster-code-server.log"

    @property
    def web_log(self) -> Path:
        """The web server's log."""
        return self.logs / "dagster-webserver.log"

    @property
    def daemon_log(self) -> Path:
        """The daemon's log."""
        return self.logs / "dagster-daemon.log"

    def wait_for_code(self, code: ProcessRecord, timeout_s: float = 120.0) -> None:
        """Wait until the code server has loaded our definitions. Raises DagsterError with the log's end."""
        # It opens its socket when they are loaded, and ends if they cannot be.
        self._wait_until(lambda: _listens(self.socket), "code server", code, self.code_log, timeout_s)

    def wait(self, code: ProcessRecord, web: ProcessRecord, daemon: ProcessRecord, timeout_s: float = 120.0) -> None:
        """Wait until the web server answers, and the others have not ended. Raises DagsterError with the log's end."""
        self._wait_until(self._answers, f"web server ({self.url})", web, self.web_log, timeout_s)
        for who, known, log in (("code server", code, self.code_log), ("daemon", daemon, self.daemon_log)):
            if not is_alive(known):
                raise DagsterError(f"the Dagster {who} ended; log {log}:\n{last_lines(log)}")

    def _wait_until(self, answers: Callable[[], bool], who: str, known: ProcessRecord, log: Path, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not answers():
            if not is_alive(known):
                raise DagsterError(f"the Dagster {who} ended; log {log}:\n{last_lines(log)}")
            if time.monotonic() > deadline:
                raise DagsterError(f"the Dagster {who} did not answer within {timeout_s:.0f} s; log {log}:\n{last_lines(log)}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/server_info", timeout=2, trust_env=False)
            return answer.status_code == 200 and "dagster_version" in json.loads(answer.text)
        except (httpx.HTTPError, ValueError):
            return False


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0
