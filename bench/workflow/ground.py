"""The stack that is measured: simulated replicas at a known pace, one worker, embedded Postgres and NATS."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from serve_app.configured import SimulatedConfig
from serve_app.local.state import StackState, load_state
from tests.e2e.stack_under_test import RunningStack, running_stack, server_folder

PROMPT: Final = SimulatedConfig(ttft_ms=20, itl_ms=5, seed=1, default_tokens=16)
# A task of a second or so, as a debater of a small model takes: what the route adds must be small beside it.
STEADY: Final = SimulatedConfig(ttft_ms=50, itl_ms=25, seed=2, default_tokens=40)
NOTHING: Final = SimulatedConfig(ttft_ms=0, itl_ms=0, seed=3, default_tokens=1)
MODELS: Final = {"prompt": PROMPT, "steady": STEADY, "nothing": NOTHING}


@dataclass
class Ground:
    """A running stack, and a client of it."""

    stack: RunningStack
    state: StackState
    http: httpx.AsyncClient
    folder: Path  # for files of the measurement; gone afterwards


def debate_of(model: str, content: str, **fields: Any) -> dict[str, Any]:
    """A request for a debate of three on one model, past the cache."""
    tasks = [{"task": label, "model": model} for label in "ABC"]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "x_route": "workflow",
        "x_debate": {"tasks": tasks, "judge_model": model},
        "x_cache": {"mode": "bypass"},
        **fields,
    }


def _configuration(folder: Path) -> str:
    models = [
        {"model_id": name, "engine": "simulated", "num_cpus": 0.1, "replicas": 1, "simulated": pace.model_dump()}
        for name, pace in MODELS.items()
    ]
    path = folder / "workflow.yaml"
    path.write_text(yaml.safe_dump({"models": models, "workers": 1}))
    path.chmod(0o644)
    return str(path)


@asynccontextmanager
async def standing_ground(**settings: str) -> AsyncIterator[Ground]:
    """Start the stack; `settings` as for running_stack. At the end everything is ended again."""
    async with AsyncExitStack() as opened:
        folder = opened.enter_context(server_folder())
        stack = opened.enter_context(running_stack(_configuration(folder), **settings))
        state = load_state(Path(stack.info["state_dir"]))
        if state is None:
            raise RuntimeError(f"no state in {stack.info['state_dir']} although `up` succeeded")
        http = await opened.enter_async_context(stack.http())
        yield Ground(stack, state, http, folder)
