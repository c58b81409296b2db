"""vLLM's engine on a CPU in one process, as our replicas start it, beside vLLM's own way with a worker process.

    python bench/cpu_engine.py [--rounds 3]

Both are started in turn, twice, each in a process of its own, with the model and the arguments of `config: local`; nothing
else of the application runs. Prints, for each, the start (imports included), the first token of one short prompt, tokens a
second of one request and of eight at once (32 tokens each), and the resident memory of all its processes.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import psutil

from bench.ending import end_on_sigterm
from serve_app.local.model import resolve_model
from serve_app.replicas.deployment import engine_arguments, engine_environment
from serve_app.settings import Settings

_WAYS: Final = ("one process", "with a worker")
_TOKENS: Final = 32
_FIRST_TOKENS: Final = 12  # requests of one token a round
_AT_ONCE: Final = 8
_TURNS: Final = 2


def main() -> None:
    """Prints one table."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description="vLLM on a CPU in one process or two; see bench/cpu_engine.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)  # what the processes of this bench are told
    options = parser.parse_args()
    if options.way:
        print(json.dumps(asyncio.run(_measured(options.way, options.rounds))))
        return
    print("| engine | start, s | first token, ms | tokens/s, one | tokens/s, eight | memory, MiB |\n|---|---|---|---|---|---|")
    for way in _WAYS * _TURNS:
        print(f"| {way} | {' | '.join(_in_a_process(way, options.rounds))} |", flush=True)


def _in_a_process(way: str, rounds: int) -> list[str]:
    model = Settings(config="local").models[0]
    env = {**os.environ, **engine_environment(model), "VLLM_LOGGING_LEVEL": "ERROR"}  # noqa: TID251 - what the process inherits
    command = [sys.executable, "-m", "bench.cpu_engine", "--way", way, "--rounds", str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            said, complaints = process.communicate()
        finally:
            process.send_signal(signal.SIGTERM)
    if process.returncode != 0:
        sys.exit(f"{way}: {complaints[-2000:]}")
    figures: dict[str, float] = json.loads(said.splitlines()[-1])
    return [f"{value:.{digits}f}" for value, digits in zip(figures.values(), (1, 1, 1, 1, 0), strict=True)]


async def _measured(way: str, rounds: int) -> dict[str, float]:
    started = time.perf_counter()
    engine = _start(way)
    try:
        await _ask(engine, 1)
        ready = time.perf_counter() - started
        await asyncio.gather(*(_ask(engine, _TOKENS) for _ in range(_AT_ONCE)))  # warm
        first, alone, together = [], [], []
        for _ in range(rounds):
            first += [(await _ask(engine, 1))[0] for _ in range(_FIRST_TOKENS)]
            told, whole = await _ask(engine, _TOKENS)
            alone.append((_TOKENS - 1) / (whole - told))
            began = time.perf_counter()
            await asyncio.gather(*(_ask(engine, _TOKENS) for _ in range(_AT_ONCE)))
            together.append(_AT_ONCE * _TOKENS / (time.perf_counter() - began))
        own = psutil.Process()
        resident = sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 2**20
        medians = [statistics.median(values) for values in (first, alone, together)]
        return {"start": ready, "first": medians[0] * 1000, "alone": medians[1], "together": medians[2], "resident": resident}
    finally:
        engine.shutdown()


def _start(way: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from serve_app.replicas.cpu_engine import in_one_process

    settings = Settings(config="local")
    model, folder = settings.models[0], Path(settings.state_dir) / "models"
    source = resolve_model(model.source or "", folder, folder / "convert.log")
    known = AsyncEngineArgs.__dataclass_fields__
    arguments = {name: value for name, value in engine_arguments(model).items() if name in known}
    engine_args = AsyncEngineArgs(model=source, distributed_executor_backend="mp", enable_log_requests=False, **arguments)
    config = engine_args.create_engine_config()
    with in_one_process(config) if way == _WAYS[0] else nullcontext():
        return AsyncLLM.from_vllm_config(config)


async def _ask(engine: Any, tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the last, of a question that was not asked before."""
    from vllm import SamplingParams

    number = time.time_ns()
    wanted = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    began, first = time.perf_counter(), None
    async for _ in engine.generate(f"Question {number}: what is the capital of France, and why?", wanted, str(number)):
        first = first or time.perf_counter() - began
    return first or 0.0, time.perf_counter() - began


if __name__ == "__main__":
    main()
