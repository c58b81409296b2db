"""Ray Serve LLM alone: `build_openai_app` on a Ray node of its own, on the same engine."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any, Final

from bench.gateway.aifactory import roles_of
from bench.gateway.candidate import ROOT, SAME_PRIORITY, Candidate, Ground, NotHad, first_answer
from bench.gateway.environments import own_version
from bench.gateway.work import SIMULATED
from serve_app.local.model import resolve_model
from serve_app.local.ports import choose_port
from serve_app.local.processes import ProcessRecord, child_environment, end, find_all, last_lines
from serve_app.local.ray_node import EmbeddedRay, choose_ray_ports
from serve_app.settings import Settings
from tests.e2e.stack_under_test import server_folder

_DEPLOY_S: Final = 400
# The simulated replica of ours reserves as little.
_OPTIONS: Final = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}}
_AS_IT_COMES: Final = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}


@contextmanager
def ray(ground: Ground) -> Iterator[list[Candidate]]:
    """With the Serve settings that ours has: HAProxy, throughput-optimised, tokens not held back."""
    with _standing(ground, "ray", "HAProxy, throughput-optimised, no token batching, no key", {}, 0) as found:
        yield found


@contextmanager
def ray_default(ground: Ground) -> Iterator[list[Candidate]]:
    """As it comes: Serve's Python proxy, tokens held back for 50 ms."""
    with _standing(ground, "ray-default", "as it comes: Python proxy, 50 ms token batching, no key", _AS_IT_COMES, None) as found:
        yield found


@contextmanager
def _standing(
    ground: Ground, name: str, how: str, variables: dict[str, str], batching_ms: int | None
) -> Iterator[list[Candidate]]:
    told = f"Ray Serve LLM {own_version('ray')}, {how}"
    with server_folder() as folder:
        taken: set[int] = set()
        ports, port = choose_ray_ports(0, 0, lambda wanted, _: choose_port(wanted, taken), taken), choose_port(0, taken)
        run_dir = folder / "r"
        node = EmbeddedRay(folder, run_dir, "127.0.0.1", ports, 8, folder / "ray.log")
        extra = {**SAME_PRIORITY, **variables, "PYTHONPATH": str(ROOT), "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0"}
        if ground.work.engine == "simulated":
            extra["RAYLLM_VLLM_ENGINE_CLS"] = "bench.gateway.ray_engine.SimulatedEngine"
        began, found = time.perf_counter(), _Found(folder, run_dir)
        head = node.launch(extra)
        found.leaders.append(head)
        try:
            node.wait(head)
            _deploy(node, port, _configs(ground, batching_ms), extra, ground.log(name))
            origin = f"http://127.0.0.1:{port}"
            first_answer(ground, origin, {}, lambda: True, ground.log(name))
            cold_s = time.perf_counter() - began
            yield [Candidate(name, told, origin, lambda: roles_of(found()), cold_s=cold_s)]
        finally:
            for _ in range(3):
                end(found(), grace_s=5, first_signal=SIGTERM)


class _Found:
    """The processes of one Ray node."""

    def __init__(self, mark: Path, run_dir: Path) -> None:
        self._mark, self._run_dir = mark, run_dir
        self.leaders: list[ProcessRecord] = []

    def __call__(self) -> list[ProcessRecord]:
        return find_all(self._mark, leaders=self.leaders, folders=[self._run_dir])


def _deploy(node: EmbeddedRay, port: int, configs: list[dict[str, Any]], extra: dict[str, str], log: Path) -> None:
    argv = [sys.executable, "-m", "bench.gateway.ray_app", node.address, str(port), json.dumps(configs)]
    env = child_environment({**node.variables(), **extra})
    with log.open("ab") as out:
        try:
            done = subprocess.run(
                argv, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=_DEPLOY_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise NotHad(f"not deployed within {_DEPLOY_S} s; log {log}: {last_lines(log, 8)}") from None
    if done.returncode != 0:
        raise NotHad(f"deploying failed; log {log}: {last_lines(log, 8)}")


def _configs(ground: Ground, batching_ms: int | None) -> list[dict[str, Any]]:
    batching = {} if batching_ms is None else {"stream_batching_interval_ms": batching_ms}
    same: dict[str, Any] = {
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": 0}]},
        "experimental_configs": batching,
    }
    if ground.work.engine == "simulated":
        sources = [{"model_id": name, "model_source": str(ground.folder)} for name in SIMULATED]
        return [{**same, "model_loading_config": source, "deployment_config": _OPTIONS} for source in sources]
    [model] = Settings(config="local").models
    source = str(resolve_model(model.source or "", ground.state / "models", ground.log("convert")))
    loading = {"model_id": model.model_id, "model_source": source}
    options = {"num_replicas": 1, "ray_actor_options": {"num_cpus": model.num_cpus}}
    arguments = {**model.engine_args, "enable_chunked_prefill": False}
    runtime = {"env_vars": {"VLLM_NO_USAGE_STATS": "1", **model.env}}
    vllm = {"engine_kwargs": arguments, "runtime_env": runtime}
    return [{**same, "model_loading_config": loading, "deployment_config": options, **vllm}]
