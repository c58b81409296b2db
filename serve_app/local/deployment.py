"""From a running cluster to a ready API: migrate, deploy the applications, wait for /readyz, make the first key."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from serve_app.local.processes import child_environment, last_lines
from serve_app.local.state import StackState, settings_file
from serve_app.local.teardown import ray_of

_STATS_TIMEOUT_S = 60.0


class DeploymentError(RuntimeError):
    """The applications could not be deployed, or did not become ready."""


def dump(values: dict[str, Any]) -> str:
    """Settings as the text of settings.json."""
    return json.dumps(values, indent=1)


def migrate(dsn: str) -> list[str]:
    """Bring the schema up to date; returns the names of the migrations applied."""
    from serve_app.store.migrate import migrate as apply

    return asyncio.run(apply(dsn))


def ray_variables(state: StackState) -> dict[str, str]:
    """What a process needs in its environment to talk to the stack's Ray."""
    node = ray_of(state)
    return node.variables() if node else {}


def deploy(state: StackState, log: Path, timeout_s: float, waiting_for: Callable[[str], None]) -> None:
    """Run serve_app.app.deploy in a process of its own and wait until it is done. Raises DeploymentError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            _errand("deploy", state),
            env=child_environment(ray_variables(state), mark=state.state_dir),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_s
    try:
        while child.poll() is None:
            _check_alive(state)
            if time.monotonic() > deadline:
                raise DeploymentError(
                    f"the applications were not deployed within {timeout_s:.0f} s; log {log}:\n{last_lines(log)}"
                )
            waiting_for(f"starting replicas (log {log})")
            time.sleep(0.2)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(5)
    if child.returncode != 0:
        raise DeploymentError(
            f"deploying the applications failed with exit code {child.returncode}; log {log}:\n{last_lines(log)}"
        )


def not_ready(state: StackState) -> str | None:
    """None if the API answers that it is ready, else what is missing."""
    try:
        answer = httpx.get(f"{state.origin}/readyz", timeout=10, trust_env=False)
    except httpx.HTTPError as error:
        return f"no answer from {state.origin} ({type(error).__name__})"
    if answer.status_code == 200:
        return None
    return " ".join(answer.text.split())[:200] or f"status {answer.status_code}"


def wait_until_ready(state: StackState, timeout_s: float, waiting_for: Callable[[str], None]) -> None:
    """Ask /readyz until it says yes. Raises DeploymentError that names what is missing."""
    deadline = time.monotonic() + timeout_s
    while (missing := not_ready(state)) is not None:
        _check_alive(state)
        if time.monotonic() > deadline:
            where = f"logs under {state.state_dir / 'logs'} and {state.run_dir / 'ray' / 'session_latest' / 'logs' / 'serve'}"
            raise DeploymentError(f"the API was not ready within {timeout_s:.0f} s; missing: {missing}; {where}")
        waiting_for(f"missing: {missing}")
        time.sleep(0.25)


def replica_stats(state: StackState) -> list[dict[str, Any]]:
    """The load of each replica as the engines report it. Raises DeploymentError if the cluster does not say."""
    try:
        done = subprocess.run(
            _errand("stats", state),
            check=True,
            env=child_environment(ray_variables(state)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_STATS_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DeploymentError(f"the replicas' load was not known within {_STATS_TIMEOUT_S:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise DeploymentError(f"the replicas' load is not known: {error.stderr.strip()[-800:]}") from error
    stats: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return stats


def _errand(name: str, state: StackState) -> list[str]:
    return [sys.executable, "-m", "serve_app.local.on_cluster", name, str(state.ray_address), str(settings_file(state.state_dir))]


def _check_alive(state: StackState) -> None:
    if dead := state.dead():
        logs = state.state_dir / "logs"
        raise DeploymentError(f"{dead[0]} ended; log {logs / dead[0]}.log:\n{last_lines(logs / f'{dead[0]}.log')}")


def create_key(dsn: str, project: str) -> str:
    """A new API key for the project, in clear; Postgres keeps only its hash."""
    from serve_app.store.api_keys import create_key as create

    return asyncio.run(create(dsn, project))
