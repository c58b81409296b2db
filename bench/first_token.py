"""Time to first token of a running stack: plain chat, and a debate beside as many plain chats at once.

    python bench/first_token.py [--rounds 20] [--model ID]

Rounds are interleaved, so that both kinds meet the same noise. A debate starts three debaters, so it is compared with
three plain requests sent together with the same prompts: what is left is the way through log, queue, worker and Dagster.
Prints milliseconds; the cache is bypassed throughout.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from bench.gateway.summary import quantile
from serve_app.settings import Settings

AIFACTORY = str(Path(sys.executable).parent / "aifactory")


async def first_token(http: httpx.AsyncClient, body: dict[str, Any], *, cache: str = "bypass") -> tuple[float, list[float]]:
    """Seconds to the first piece of text, and the gaps between the pieces."""
    started, stamps = time.perf_counter(), []
    async with http.stream("POST", "/chat/completions", json={**body, "stream": True, "x_cache": {"mode": cache}}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                delta = chunk["choices"][0]["delta"] if chunk.get("choices") else {}
                if delta.get("content") or delta.get("reasoning_content"):
                    stamps.append(time.perf_counter())
    return stamps[0] - started, [b - a for a, b in itertools.pairwise(stamps)]


async def measure(api: str, key: str, model: str, rounds: int) -> None:
    systems = [task.system for task in Settings().debate.tasks]
    alone, together, debate, gaps = [], [], [], []
    async with httpx.AsyncClient(base_url=api, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False) as http:
        for number in range(-2, rounds):
            user = {"role": "user", "content": f"Tell me fact number {number} about {time.time_ns()}."}
            plain = {"model": model, "max_tokens": 16, "messages": [user]}
            one, between = await first_token(http, plain)
            bodies = [{**plain, "messages": [{"role": "system", "content": system}, user]} for system in systems]
            three = min(ttft for ttft, _ in await asyncio.gather(*(first_token(http, body) for body in bodies)))
            debated, _ = await first_token(http, {**plain, "x_route": "workflow"})
            if number >= 0:  # the first rounds warm up
                alone.append(one)
                together.append(three)
                debate.append(debated)
                gaps += between
    report = {
        "plain, alone": alone,
        f"plain, first of {len(systems)} at once": together,
        "debate, first debater token": debate,
        "added by the workflow": [d - t for d, t in zip(debate, together, strict=True)],
        "plain, between tokens": gaps,
    }
    print(f"model {model}, {rounds} rounds, milliseconds")
    for name, values in report.items():
        p50, p90 = (1000 * quantile(values, share) for share in (0.5, 0.9))
        print(f"  {name:32} p50 {p50:7.1f}   p90 {p90:7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", help="default: the first base model of the stack")
    options = parser.parse_args()
    status = json.loads(subprocess.run([AIFACTORY, "status", "--json"], capture_output=True, text=True, check=False).stdout)
    if not status["ready"]:
        sys.exit("the stack is not ready: run scripts/up first")
    key = Path(status["api_key_file"]).read_text().strip()
    asyncio.run(measure(status["api"], key, options.model or status["replicas"][0]["model"], options.rounds))


if __name__ == "__main__":
    main()
