"""The command line: start a stack, measure, print the table."""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from bench.ending import end_on_sigterm
from bench.workflow import backlog, figures
from bench.workflow.ground import Ground, standing_ground
from bench.workflow.ray_launch import write_home

FIGURES: Final = ("first-token", "ray", "ray-debate", "tasks", "runs", "terminate")
_RAY_TIMEOUT_S: Final = 1200.0


@dataclass(frozen=True)
class Line:
    """One line of the table. `held` None: there is no goal."""

    what: str
    told: str
    goal: str = ""
    held: bool | None = None


def main() -> None:
    """Exit code 1 when a goal is missed."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description="what the workflow route costs; see bench/workflow.py")
    parser.add_argument("--rounds", type=int, default=30, help="debates for the first token; other figures take a share")
    parser.add_argument("--ray-rounds", type=int, default=5, help="Ray jobs, some ten seconds each")
    parser.add_argument("--only", default=",".join(FIGURES), help=f"of {', '.join(FIGURES)}")
    options = parser.parse_args()
    wanted = set(options.only.split(","))
    if wanted - set(FIGURES):
        parser.error(f"unknown figures {sorted(wanted - set(FIGURES))}; known: {', '.join(FIGURES)}")
    if min(options.rounds, options.ray_rounds) < 1:
        parser.error("--rounds and --ray-rounds must be at least 1")
    lines = asyncio.run(_measure(wanted, options.rounds, options.ray_rounds))
    print(f"simulated replicas, one worker, {options.rounds} rounds")
    for line in lines:
        mark = {True: "held  ", False: "MISSED", None: "      "}[line.held]
        print(f"  {mark} {line.what:58} {line.told:40} {line.goal}")
    sys.exit(int(any(line.held is False for line in lines)))


async def _measure(wanted: set[str], rounds: int, ray_rounds: int) -> list[Line]:
    lines: list[Line] = []
    async with standing_ground() as ground:
        first = await figures.first_tokens(ground, rounds) if wanted & {"first-token", "ray", "ray-debate"} else []
        if "first-token" in wanted:
            lines.append(_line("request to first debater token, less replica's own", first, 0.25))
        if "ray" in wanted:
            lines += await _through_ray(ground, statistics.median(first), ray_rounds)
        share = max(1, rounds // 3)
        if "tasks" in wanted:
            ratio = statistics.median(await figures.task_ratios(ground, share))
            lines.append(Line("three tasks over the slowest alone", f"{ratio:.2f}x", "<= 1.25x", ratio <= 1.25))
        if "runs" in wanted:
            worked = await backlog.work_off(ground, 4 * rounds)
            told = f"{worked.per_second:.1f}/s"
            lines.append(Line("debates a second that wait, replicas cost nothing", told, ">= 10/s", worked.per_second >= 10))
            lines.append(_cpu(worked.cpu))
        if "terminate" in wanted:
            lines.append(_line("Terminate to stream ended and engines idle", await figures.terminations(ground, share), 1.0))
    if "ray-debate" in wanted:
        async with standing_ground(debate_launch="ray") as ground:
            taken = await figures.first_tokens(ground, ray_rounds, warm_up=1)
            lines += _against_warm("the same debates, each a Ray job, to the first token", taken, statistics.median(first))
    return lines


async def _through_ray(ground: Ground, warm_s: float, rounds: int) -> list[Line]:
    home, env = write_home(ground.state, ground.folder, ground.stack.info["ray_dashboard"])
    asked = [sys.executable, "-m", "bench.workflow.ray_launch", str(home), str(rounds)]
    done = await asyncio.to_thread(
        subprocess.run,
        asked,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_RAY_TIMEOUT_S,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if not answers:
        raise RuntimeError(f"no Ray job was measured:\n{done.stderr[-3000:]}")
    taken: list[float] = json.loads(answers[-1].removeprefix("ANSWER "))
    return _against_warm("a Ray job with one empty op (RayRunLauncher) to that op", taken, warm_s)


def _against_warm(what: str, taken: list[float], warm_s: float) -> list[Line]:
    ratio = statistics.median(taken) / warm_s
    return [_line(what, taken, None), Line("  over the warm way to the first token", f"{ratio:.0f}x", ">= 20x", ratio >= 20)]


def _cpu(used: dict[str, float]) -> Line:
    """What bounds the rate: the cores, and for the worker one core."""
    parts = ", ".join(f"{part} {used[part] * 1000:.0f}" for part in sorted(used, key=used.__getitem__, reverse=True))
    return Line("  milliseconds of CPU for each", f"{parts}; together {sum(used.values()) * 1000:.0f}")


def _line(what: str, taken: list[float], goal_s: float | None) -> Line:
    """Median and 90th percentile; the goal is for the median."""
    ordered = sorted(taken)
    p50, p90 = statistics.median(ordered), ordered[int(len(ordered) * 0.9)]
    told = f"p50 {p50 * 1000:.0f} ms   p90 {p90 * 1000:.0f} ms"
    return Line(what, told) if goal_s is None else Line(what, told, f"p50 <= {goal_s * 1000:.0f} ms", p50 <= goal_s)
