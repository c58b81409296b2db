"""Sees into the Ray cluster of a stack: which actor is which process, and how busy the engines are.

A process of its own, because Ray reads its login from the environment when it is imported. One question a line on
stdin, `NUMBER QUESTION`; one answer a line on stdout, `ANSWER NUMBER JSON`.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from serve_app.local import deployment
from serve_app.local.processes import child_environment
from serve_app.local.state import StackState, settings_file
from serve_app.settings import APP_NAME, WORKER_APP_NAME, settings_from_dict

Role = Literal["gateway", "worker", "replica"]
_PREFIXES: dict[str, Role] = {
    f"SERVE_REPLICA::{APP_NAME}#gateway#": "gateway",
    f"SERVE_REPLICA::{APP_NAME}#model-": "replica",
    f"SERVE_REPLICA::{WORKER_APP_NAME}#debate-worker#": "worker",
}
_TIMEOUT_S = 90.0
_TRIES = 3


@dataclass(frozen=True)
class Seat:
    """A live actor of the stack."""

    role: Role
    name: str
    pid: int


class Eyes:
    """The asking side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self._asked = 0

    @classmethod
    async def open(cls, state: StackState, stack: AsyncExitStack, variables: Mapping[str, str] | None = None) -> Self:
        """`variables`: the login of a Ray cluster that the stack did not start."""
        login = {**deployment.ray_variables(state), **(variables or {})}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.chaos.eyes",
            str(state.ray_address),
            str(settings_file(state.state_dir)),
            # Ray's list of actors looks for a cluster by itself, and gives up where it finds two.
            env=child_environment({**login, "RAY_ADDRESS": str(state.ray_address)}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=2**20,
        )
        eyes = cls(process)
        stack.push_async_callback(eyes.close)
        await eyes.seats()
        return eyes

    async def seats(self, role: Role | None = None) -> list[Seat]:
        """The live gateways, workers and replicas, in a stable order."""
        seats = [Seat(**fields) for fields in await self._ask("seats")]
        return [seat for seat in seats if role in (None, seat.role)]

    async def engines(self) -> list[dict[str, Any]]:
        """`{model, replica, running, waiting}` of each engine that answers."""
        engines: list[dict[str, Any]] = await self._ask("engines")
        return engines

    async def busy(self) -> int:
        """Requests that the engines work on."""
        return sum(engine["running"] + engine["waiting"] for engine in await self.engines())

    async def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, question: str) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process that looks into Ray has no pipes")
        async with self._turn, asyncio.timeout(_TIMEOUT_S):
            self._asked += 1
            stdin.write(f"{self._asked} {question}\n".encode())
            await stdin.drain()
            # Who was cancelled before has left its answer to be read.
            head = f"ANSWER {self._asked} ".encode()
            while line := await stdout.readline():
                if line.startswith(head):
                    return json.loads(line.removeprefix(head))
        raise RuntimeError("the process that looks into Ray has ended; its stderr says why")


def _look(question: str, settings: Any) -> Any:
    if question == "engines":
        from serve_app.app import replica_stats

        return replica_stats(settings)
    from ray.util.state import list_actors

    seats = []
    for actor in list_actors(filters=[("state", "=", "ALIVE")], limit=1000, detail=True):
        role = next((role for prefix, role in _PREFIXES.items() if (actor.name or "").startswith(prefix)), None)
        if role is not None and actor.pid:
            seats.append({"role": role, "name": actor.name, "pid": actor.pid})
    return sorted(seats, key=lambda seat: str(seat["name"]))


def _patiently(question: str, settings: Any) -> Any:
    """On a busy machine Ray's dashboard, which lists the actors, may not answer at once."""
    from ray.util.state.exception import DataSourceUnavailable, RayStateApiException

    for _ in range(_TRIES):
        with contextlib.suppress(RayStateApiException, DataSourceUnavailable, TimeoutError, OSError):
            return _look(question, settings)
        time.sleep(1)
    return _look(question, settings)


def answer(lines: Iterable[str], look: Callable[[str], Any]) -> None:
    """Answer each question on stdout with what `look` sees, until the lines end."""
    for line in lines:
        number, _, question = line.strip().partition(" ")
        sys.stdout.write(f"ANSWER {number} {json.dumps(look(question))}\n")
        sys.stdout.flush()


def _watch(address: str, settings_path: str) -> None:
    import ray

    settings = settings_from_dict(json.loads(Path(settings_path).read_text()))
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        answer(sys.stdin, lambda question: _patiently(question, settings))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    _watch(sys.argv[1], sys.argv[2])
