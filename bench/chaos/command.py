"""The command line: start a stack, do the chaos, print the table."""

import argparse
import asyncio
import shutil
import statistics
import sys
from collections import Counter
from pathlib import Path

from bench.chaos.ground import Ground, standing_ground
from bench.chaos.invariants import Finding
from bench.chaos.kills import TARGETS, plan
from bench.chaos.story import Story, chaos, disconnects
from bench.ending import end_on_sigterm

_MOST_SHOWN = 20
_WARM_UP = 0.2  # of a run without kills: memory counts after this part


def main() -> None:
    """Exit code 1 when an invariant is broken."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description="random kills under a mixed load; see bench/chaos.py")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--lanes", type=int, default=10, help="requests in flight, about")
    parser.add_argument("--targets", default=",".join(TARGETS), help="who may be killed")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="deadline of a run")
    parser.add_argument("--disconnects", type=int, default=0, metavar="N", help="only this: N clients leave")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs of the stack in this new folder")
    options = parser.parse_args()
    unknown = set(options.targets.split(",")) - set(TARGETS)
    if unknown:
        parser.error(f"unknown targets {sorted(unknown)}; known: {', '.join(TARGETS)}")
    sys.exit(asyncio.run(_run(options)))


async def _run(options: argparse.Namespace) -> int:
    async with standing_ground(timeout_s=options.timeout_s) as ground:
        if options.disconnects:
            finding = await disconnects(ground, options.disconnects, seed=options.seed)
            _show([finding])
            return int(bool(finding.broken))
        kills = plan(options.seed, options.kills, options.minutes * 60, tuple(options.targets.split(",")))
        story = await chaos(ground, seed=options.seed, kills=kills, seconds=options.minutes * 60, lanes=options.lanes)
        # Told before the stack is ended: what was found must not hang on that.
        print(f"seed {options.seed}, {len(story.killed)} kills in {options.minutes:g} minutes, {options.lanes} lanes")
        _tell(story)
        sys.stdout.flush()
        if options.logs:
            _keep_logs(ground, options.logs)
    return int(bool(story.broken))


def _keep_logs(ground: Ground, folder: Path) -> None:
    shutil.copytree(ground.state.run_dir / "ray" / "session_latest" / "logs", folder / "ray", symlinks=True)
    shutil.copytree(ground.state.state_dir / "logs", folder / "stack")


def _tell(story: Story) -> None:
    victims = Counter(kill.target for kill in story.killed)
    print("  killed:", ", ".join(f"{count} {name}" for name, count in sorted(victims.items())) or "nobody")
    print(f"  whole again after {story.healed_s:.1f} s, at rest after {story.settled_s:.1f} s more")
    print("  requests:", ", ".join(f"{count} {name}" for name, count in sorted(story.ends.items())))
    print("  debates in the log:", ", ".join(f"{count} {name}" for name, count in story.debates.most_common(8)))
    _show(story.findings)
    _tell_memory(story.memory)


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        print(f"  {'BROKEN' if finding.broken else 'held  '} {finding.name} ({finding.checked} checked)")
        for case in finding.broken[:_MOST_SHOWN]:
            print(f"           {case}")
        if len(finding.broken) > _MOST_SHOWN:
            print(f"           and {len(finding.broken) - _MOST_SHOWN} more")


def _tell_memory(samples: list[dict[str, int]]) -> None:
    """Medians of the tenths after warm-up, for each process that lived through all of it."""
    warm = samples[int(len(samples) * _WARM_UP) :]
    tenth = max(1, len(warm) // 10)
    for name in sorted(warm[-1].keys()):
        sizes = [sample[name] / 2**20 for sample in warm if name in sample]
        if len(sizes) < len(warm) or len(warm) < 3:
            print(f"  memory {name}: {sizes[-1]:.1f} MiB at the end, started during the run")
            continue
        tenths = [statistics.median(sizes[start : start + tenth]) for start in range(0, len(sizes) - tenth + 1, tenth)]
        first, last = tenths[0], tenths[-1]
        print(f"  memory {name}: {first:.1f} -> {last:.1f} MiB ({(last / first - 1) * 100:+.2f} %)")
        print(f"           tenth by tenth: {', '.join(f'{size:.1f}' for size in tenths)}")
