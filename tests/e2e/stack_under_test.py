"""A whole stack, started and ended through the command line, as a stranger does it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

AIFACTORY = str(Path(sys.executable).parent / "aifactory")
REPOSITORY = Path(__file__).parents[2]
QUICK_METRICS = {"RAY_metrics_report_interval_ms": "2000"}  # ten seconds otherwise
# Serve gives load balancers of others half a minute to forget a gateway; no test has one.
SHORT_DRAIN = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}


@dataclass(frozen=True)
class RunningStack:
    """Addresses of a stack, as `aifactory status --json` tells them, and the first API key."""

    info: dict[str, Any]
    key: str
    env: dict[str, str]

    @property
    def origin(self) -> str:
        return str(self.info["api"]).removesuffix("/v1")

    def sdk(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.info["api"], api_key=self.key, max_retries=0, timeout=120)

    def http(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.origin, headers=headers, timeout=120, trust_env=False)

    def command(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return run_command(self.env, *arguments, timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return status

    async def engines_idle(self, within_s: float) -> float:
        """Wait until no engine works on anything; seconds it took. Asked of the engines through the worker's own way."""
        started = time.monotonic()
        while True:
            replicas = (await asyncio.to_thread(self.status))["replicas"]
            if replicas and all(r["running"] == 0 and r["waiting"] == 0 for r in replicas):
                return time.monotonic() - started
            assert time.monotonic() - started < within_s, f"engines still work after {within_s} s: {replicas}"


@contextmanager
def server_folder() -> Iterator[Path]:
    """A short path outside pytest's folders, which are closed to the user that Postgres runs as when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="aif-e2e-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_command(env: dict[str, str], *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `aifactory ARGUMENTS` in the environment of a stack."""
    return subprocess.run(
        [AIFACTORY, *arguments],
        env=env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def running_stack(config: str, variables: Mapping[str, str] | None = None, /, **settings: str) -> Iterator[RunningStack]:
    """`aifactory up --no-demo`, and `down --purge` at the end. `settings` become AIFACTORY_ variables, beside `variables`."""
    with server_folder() as folder:
        yield from _running_in(folder, config, settings, variables or {})


def _running_in(folder: Path, config: str, settings: dict[str, str], variables: Mapping[str, str]) -> Iterator[RunningStack]:
    base = 21_000 + os.getpid() % 4000
    env = {k: v for k, v in os.environ.items() if not k.startswith("AIFACTORY_")}  # noqa: TID251 - what the commands inherit
    env |= SHORT_DRAIN | {
        "AIFACTORY_STATE_DIR": str(folder / "state"),
        "AIFACTORY_PORT": str(base),
        "AIFACTORY_POSTGRES_PORT": str(base + 1),
        "AIFACTORY_NATS_PORT": str(base + 2),
        "AIFACTORY_RAY_PORT": str(base + 3),
        "AIFACTORY_RAY_DASHBOARD_PORT": str(base + 4),
        "AIFACTORY_DAGSTER_PORT": str(base + 5),
        **{f"AIFACTORY_{name.upper()}": value for name, value in settings.items()},
        **variables,
    }
    try:
        up = run_command(env, "up", "--no-demo", "--config", config, timeout_s=900)
        assert up.returncode == 0, f"{up.stdout}\n{up.stderr}"
        info = json.loads(run_command(env, "status", "--json").stdout)
        key_file = Path(info["api_key_file"])
        assert key_file.stat().st_mode & 0o077 == 0
        yield RunningStack(info, key_file.read_text().strip(), env)
    finally:
        down = run_command(env, "down", "--purge", timeout_s=240)  # on somebody's own Ray it waits for Serve to drain
        left = run_command(env, "status", "--json")
        assert down.returncode == 0, down.stderr
        assert left.returncode == 3, left.stdout


async def until(condition: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Wait until `condition()` is true; a coroutine function is awaited."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.05)
