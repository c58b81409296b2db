"""This project: the whole application as `aifactory up` starts it, asked through HAProxy."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from bench.gateway.candidate import SAME_PRIORITY, Candidate, Ground, NotHad, first_answer
from bench.gateway.work import SIMULATED
from serve_app.local.ports import choose_port
from serve_app.local.processes import ProcessRecord, find_all
from serve_app.local.state import StackState, load_state
from serve_app.settings import Settings
from tests.e2e.stack_under_test import run_command, server_folder

# What a process does, by a part of its command line; the first that fits.
ROLES: Final = {
    ":gateway": "gateway",
    "haproxy": "gateway",
    ":model-": "engine",
    "OpenAiIngress": "gateway",
    "LLMServer": "engine",
}
_PORTS: Final = ("PORT", "POSTGRES_PORT", "NATS_PORT", "RAY_PORT", "RAY_DASHBOARD_PORT", "DAGSTER_PORT")


@contextmanager
def aifactory(ground: Ground) -> Iterator[list[Candidate]]:
    """One stack with two faces: the cache bypassed, and as it comes."""
    with server_folder() as folder:
        taken: set[int] = set()
        env = {k: v for k, v in os.environ.items() if not k.startswith("AIFACTORY_")}  # noqa: TID251 - what the commands inherit
        env |= {f"AIFACTORY_{name}": str(choose_port(0, taken)) for name in _PORTS}
        env |= SAME_PRIORITY
        env["AIFACTORY_STATE_DIR"] = str(folder / "state")
        try:
            yield _faces(ground, env, folder)
        finally:
            down = run_command(env, "down", "--purge", timeout_s=300)
            if down.returncode != 0:
                raise RuntimeError(f"the stack could not be ended: {down.stderr}")


def _faces(ground: Ground, env: dict[str, str], folder: Path) -> list[Candidate]:
    began = time.perf_counter()
    up = run_command(env, "up", "--no-demo", "--config", _configuration(ground, folder), timeout_s=900)
    if up.returncode != 0:
        raise NotHad(f"`aifactory up` failed: {up.stderr[-600:]}")
    ready_s = time.perf_counter() - began
    info = json.loads(run_command(env, "status", "--json").stdout)
    state = load_state(Path(info["state_dir"]))
    if state is None:
        raise NotHad(f"no state in {info['state_dir']} although `up` succeeded")
    headers = {"authorization": f"Bearer {Path(info['api_key_file']).read_text().strip()}"}
    origin = str(info["api"]).removesuffix("/v1")
    asked = time.perf_counter()
    first_answer(ground, origin, headers, lambda: True, state.state_dir / "logs" / "deploy.log")
    cold_s = ready_s + time.perf_counter() - asked
    plain = Candidate(
        name="aifactory-cache",
        told=f"the same as it comes: each question embedded and looked up, {ground.gateways} gateway(s)",
        origin=origin,
        pids=lambda: roles_of(_processes(state)),
        headers=headers,
    )
    told = f"the whole application through HAProxy, API key, cache bypassed, {ground.gateways} gateway(s)"
    past = replace(plain, name="aifactory", told=told, headers={**headers, "cache-control": "no-store"}, cold_s=cold_s)
    return [past, plain]


def _configuration(ground: Ground, folder: Path) -> str:
    values: dict[str, Any] = {"workers": 1, "gateway_replicas": ground.gateways}
    if ground.work.engine == "simulated":
        models = [(name, pace.model_dump()) for name, pace in SIMULATED.items()]
        values["models"] = [
            {"model_id": name, "engine": "simulated", "num_cpus": 0.1, "replicas": 1, "simulated": pace} for name, pace in models
        ]
    else:
        values["models"] = [model.model_dump(exclude_none=True) for model in Settings(config="local").models]
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(values))
    path.chmod(0o644)
    return str(path)


def _processes(state: StackState) -> list[ProcessRecord]:
    return find_all(state.state_dir, leaders=state.processes.values(), folders=(state.run_dir,))


def roles_of(found: list[ProcessRecord]) -> dict[int, str]:
    """The role of each process of a Ray application."""
    roles: dict[int, str] = {}
    for known in found:
        try:
            title = " ".join(psutil.Process(known.pid).cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        roles[known.pid] = next((role for sign, role in ROLES.items() if sign in title), "rest")
    return roles
