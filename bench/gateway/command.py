"""The command line: start the candidates, measure in turns, keep the raw lines, print the table."""

import argparse
import asyncio
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO

import psutil
import uvloop

from bench.ending import end_on_sigterm
from bench.gateway import figures
from bench.gateway.aifactory import aifactory
from bench.gateway.candidate import ROOT, Candidate, Ground, NotHad
from bench.gateway.proxies import bare_engine, litellm, vllm_router
from bench.gateway.ray_llm import ray, ray_default
from bench.gateway.summary import Line, goals_of, rows_of
from bench.gateway.table import legend, table, verdicts
from bench.gateway.work import work_of

_STARTS: Final[dict[str, Callable[[Ground], AbstractContextManager[list[Candidate]]]]] = {
    "aifactory": aifactory,
    "ray": ray,
    "ray-default": ray_default,
    "litellm": litellm,
    "vllm-router": vllm_router,
}
_OUT: Final = ROOT / "bench" / "out"


def main() -> None:
    """Exit code 1 when a goal is missed."""
    end_on_sigterm()
    options = _options()
    if options.report:
        lines = [json.loads(text) for path in options.report for text in path.read_text().splitlines()]
    else:
        lines = _run(options)
    rows, held = rows_of(lines), goals_of(rows_of(lines))
    print("\n\n".join((table(rows), legend(rows), verdicts(held))))
    sys.exit(int(any(goal.held is False for goal in held)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="this gateway beside its peers; see bench/gateway.py")
    parser.add_argument("--only", default=",".join(_STARTS), help=f"of {', '.join(_STARTS)}; the bare engine is always there")
    parser.add_argument("--rounds", type=int, default=60, help="requests of each kind to each candidate, one at a time")
    parser.add_argument("--turn-s", type=float, default=2.0, help="seconds of each step of load for each candidate")
    parser.add_argument("--steps", default="1,4,8,16,32,64", help="concurrency of the steps of load")
    parser.add_argument("--stream-rounds", type=int, default=5, help="turns of eight streams at once")
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes of ours")
    parser.add_argument("--litellm-workers", type=int, default=1, help="processes of the LiteLLM proxy")
    parser.add_argument("--engine", choices=("simulated", "vllm"), default="simulated")
    parser.add_argument("--together", action="store_true", help="all stand idle together, not one after the other")
    parser.add_argument("--passes", type=int, default=2, help="times that everything is started, measured and ended")
    parser.add_argument("--state", type=Path, default=_OUT / "peers", help="where the peers are installed")
    parser.add_argument("--raw", type=Path, help="file for the raw lines (default: a new one in bench/out)")
    parser.add_argument("--report", type=Path, nargs="+", help="measure nothing: make the table of these files")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(_STARTS):
        parser.error(f"unknown candidates {sorted(unknown)}; known: {', '.join(_STARTS)}")
    return options


def _run(options: argparse.Namespace) -> list[Line]:
    raw: Path = options.raw or _OUT / f"gateway-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    raw.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-gateway-"))
    with raw.open("a") as out:
        notes = _Notes(out)
        notes.take(_head(options))
        ground = Ground(work_of(options.engine), folder, options.state.resolve(), "", options.gateways, options.litellm_workers)
        names = options.only.split(",")
        groups = [names] if options.together else [[name] for name in names]
        for number, group in enumerate(groups * options.passes):
            notes.group = f"{time.time():.0f}: {','.join(group)}"
            with _standing(ground, group, notes) as candidates:
                uvloop.run(_measure(candidates, ground, options, notes, bare_load=number == 0))
    print(f"raw figures: {raw}", file=sys.stderr)
    if not any(line["kind"] == "not_had" for line in notes.lines):
        shutil.rmtree(folder)  # the logs explain what is missing, and nothing else
    return notes.lines


class _Notes:
    """The raw lines: in a file at once, and at hand."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.lines: list[Line] = []
        self.group = ""  # the candidates that stand together now

    def take(self, line: Line) -> None:
        line = {**line, "group": self.group}
        self.lines.append(line)
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()


def _head(options: argparse.Namespace) -> Line:
    asked = {name: str(value) for name, value in vars(options).items()}
    machine: dict[str, Any] = {"cpus": psutil.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    return {"kind": "head", "options": asked, **machine, "unix_time": time.time(), "load": psutil.getloadavg()}


@contextmanager
def _standing(ground: Ground, names: Sequence[str], notes: _Notes) -> Iterator[list[Candidate]]:
    """The bare engine and the named candidates, started one after the other. One that cannot be had is noted."""
    with ExitStack() as opened:
        candidates = opened.enter_context(bare_engine(ground))
        ground = replace(ground, engine=candidates[0].origin)
        for name in names:
            print(f"starting {name} …", file=sys.stderr)
            try:
                candidates += opened.enter_context(_STARTS[name](ground))
            except NotHad as error:
                print(f"{name}: {error}", file=sys.stderr)
                notes.take({"kind": "not_had", "candidate": name, "why": str(error)})
        for one in candidates:
            notes.take({"kind": "candidate_up", "candidate": one.name, "told": one.told, "cold_s": one.cold_s})
        yield candidates
        print("ending them …", file=sys.stderr)


async def _measure(
    candidates: list[Candidate], ground: Ground, options: argparse.Namespace, notes: _Notes, *, bare_load: bool
) -> None:
    if len(candidates) == 1:
        return  # nothing stands beside the engine
    steps = [int(step) for step in options.steps.split(",")]
    parts: list[tuple[str, AsyncIterator[Line]]] = [
        ("latency, one request at a time", figures.latencies(candidates, ground.work, options.rounds)),
        ("eight streams at once", figures.streams(candidates, ground.work, options.stream_rounds)),
        ("load", figures.load(candidates[0 if bare_load else 1 :], ground.work, steps, options.turn_s)),
    ]
    for what, lines in parts:
        began = time.monotonic()
        async for line in lines:
            notes.take(line)
        print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    for line in await asyncio.to_thread(lambda: list(figures.memory(candidates))):
        notes.take(line)
