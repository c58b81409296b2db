"""Servers of one command: the bare engine, and the two peers that stand in front of its server."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import yaml

from bench.gateway.candidate import ROOT, Candidate, Ground, served
from bench.gateway.environments import environment, version
from serve_app.local.model import resolve_model
from serve_app.local.ports import choose_port
from serve_app.settings import Settings

LITELLM: Final = "litellm[proxy]==1.106.2"
VLLM_ROUTER: Final = "vllm-router==0.1.17"
_KEY: Final = "sk-bench"


@contextmanager
def bare_engine(ground: Ground) -> Iterator[list[Candidate]]:
    """The engine behind an OpenAI server of its own."""
    port = choose_port(0, set())
    argv, env = [sys.executable, "-m", "bench.gateway.engine_server", str(port)], {"PYTHONPATH": str(ROOT)}
    told = "the engine's own server, no gateway"
    if ground.work.engine == "vllm":
        argv, env = _vllm_server(ground, port)
        told = "vLLM's own OpenAI server, no gateway"
    with served(ground, "engine", told, argv, port, role="engine", env=env) as candidate:
        yield [candidate]


def _vllm_server(ground: Ground, port: int) -> tuple[list[str], dict[str, str]]:
    """vLLM's own server for the first model of configuration `local`, with the arguments that ours gives it."""
    [model] = Settings(config="local").models
    source = resolve_model(model.source or "", ground.state / "models", ground.log("convert"))
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--model", str(source), "--served-model-name", model.model_id, "--no-enable-chunked-prefill"]
    for name, value in model.engine_args.items():
        flag = f"--{name.replace('_', '-')}"
        argv += [flag] if value is True else [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return argv, {"VLLM_NO_USAGE_STATS": "1", **model.env}


@contextmanager
def litellm(ground: Ground) -> Iterator[list[Candidate]]:
    """The LiteLLM proxy with a master key and no database."""
    programs = environment(ground.state, "litellm", LITELLM)
    config, port = ground.folder / "litellm.yaml", choose_port(0, set())
    config.write_text(yaml.safe_dump(_litellm_config(ground)))
    argv = [str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--num_workers", str(ground.litellm_workers), "--telemetry", "False"]
    env = {
        "PATH": f"{programs}{os.pathsep}{os.defpath}",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its list of prices ships with it; no request for a newer one
    }
    told = f"LiteLLM proxy {version(programs, 'litellm')}, master key, no database, {ground.litellm_workers} worker(s)"
    with served(ground, "litellm", told, argv, port, env=env, headers={"authorization": f"Bearer {_KEY}"}) as candidate:
        yield [candidate]


def _litellm_config(ground: Ground) -> dict[str, Any]:
    names = dict.fromkeys((ground.work.paced, ground.work.instant))
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"hosted_vllm/{name}", "api_base": f"{ground.engine}/v1", "api_key": "none"},
        }
        for name in names
    ]
    return {"model_list": models, "litellm_settings": {"num_retries": 0}, "general_settings": {"master_key": _KEY}}


@contextmanager
def vllm_router(ground: Ground) -> Iterator[list[Candidate]]:
    """vLLM's router, written in Rust, in front of the one server."""
    programs = environment(ground.state, "vllm-router", VLLM_ROUTER)
    taken: set[int] = set()
    port, metrics = choose_port(0, taken), choose_port(0, taken)
    argv = [str(programs / "vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", ground.engine]
    argv += ["--policy", "round_robin", "--prometheus-port", str(metrics), "--log-level", "warning"]
    told = f"vllm-router {version(programs, 'vllm-router')}, one worker, no key"
    with served(ground, "vllm-router", told, argv, port) as candidate:
        yield [candidate]
