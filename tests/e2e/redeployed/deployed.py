"""The file that `aifactory up` writes for `serve deploy`, and what Serve has made of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from serve_app.local.deployment import ray_variables
from serve_app.local.serve_file import serve_file
from serve_app.local.state import load_state
from serve_app.settings import WORKER_APP_NAME
from tests.e2e.stack_under_test import RunningStack, until

START_S = 300.0
_SERVE = str(Path(sys.executable).parent / "serve")


class Deployed:
    """The file of a stack. `text`: as `up` wrote it; `worker`: settings of the worker that are deployed beside it."""

    def __init__(self, stack: RunningStack) -> None:
        state_dir = Path(stack.info["state_dir"])
        state = load_state(state_dir)
        assert state is not None
        self._env = {**stack.env, **ray_variables(state), "RAY_DASHBOARD_ADDRESS": stack.info["ray_dashboard"]}
        self.worker: dict[str, Any] = {}
        self.file = serve_file(state_dir)
        self.text = self.file.read_text()

    async def deploy(self, **worker: Any) -> None:
        """Deploy the file as `up` wrote it, with these settings of the worker beside it, and wait until all of it runs.

        The first time both applications are started again, because Serve did not have them from a file.
        """
        config = yaml.safe_load(self.text)
        config["applications"][1]["args"] |= worker
        self.file.write_text(yaml.safe_dump(config) if worker else self.text)
        outgoing = self._actors(WORKER_APP_NAME) if worker != self.worker else set()
        self.command("deploy", str(self.file))
        await until(lambda: self.runs() and not outgoing & self._actors(WORKER_APP_NAME), START_S, "applications from the file")
        self.worker = worker

    def set_knobs(self, knobs: dict[str, Any]) -> None:
        """Deploy the file as `up` wrote it, with these live settings of gateway and worker."""
        config = yaml.safe_load(self.text)
        for application in config["applications"]:
            (deployment,) = application["deployments"]
            deployment["user_config"] = knobs
        self.file.write_text(yaml.safe_dump(config))
        self.command("deploy", str(self.file))

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [_SERVE, *arguments],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def details(self) -> dict[str, Any]:
        """What Serve says of its applications, replicas included."""
        token = Path(self._env["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        address = f"{self._env['RAY_DASHBOARD_ADDRESS']}/api/serve/applications/"
        answer = httpx.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        applications: dict[str, Any] = answer.json()["applications"]
        return applications

    def runs(self) -> bool:
        """Whether both applications run, from a file."""
        found = self.details()
        assert {name: told["message"] for name, told in found.items() if told["status"] == "DEPLOY_FAILED"} == {}
        states = {name: (told["status"], told["source"]) for name, told in found.items()}
        return states == dict.fromkeys(("aifactory", "aifactory-worker"), ("RUNNING", "declarative"))

    def replicas(self) -> set[str]:
        """The actors of all replicas."""
        return {actor for name in self.details() for actor in self._actors(name)}

    def _actors(self, application: str) -> set[str]:
        deployments = self.details()[application]["deployments"].values()
        return {replica["actor_id"] for deployment in deployments for replica in deployment["replicas"]}
