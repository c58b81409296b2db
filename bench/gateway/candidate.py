"""A candidate: something that answers chat requests, started by us, with its processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Final

import httpx
import psutil

from bench.gateway.work import Work, body
from serve_app.local.processes import ProcessRecord, child_environment, end, find_all, is_alive, last_lines, spawn

ROOT: Final = Path(__file__).resolve().parents[2]
# Ray gives its workers a low priority (15), and so ours and Ray's own gateway: beside anything else on the machine, the
# client of this benchmark included, they would stand behind the peers. All candidates have the same here.
SAME_PRIORITY: Final = {"RAY_worker_niceness": "0"}
_FIRST_ANSWER_S: Final = 300.0


class NotHad(RuntimeError):
    """A candidate could not be installed or started; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """One that is running. `cold_s`: from its start to its first answer, seconds; None for a second face of the same."""

    name: str
    told: str  # what it is, in a line
    origin: str
    pids: Callable[[], dict[int, str]]  # role of each process: gateway, engine, rest
    headers: dict[str, str] = field(default_factory=dict)
    cold_s: float | None = None


@dataclass(frozen=True)
class Ground:
    """Where candidates are started. `engine`: address of the bare engine's server."""

    work: Work
    folder: Path  # for logs and configurations
    state: Path  # environments of the peers
    engine: str = ""
    gateways: int = 1
    litellm_workers: int = 1

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def first_answer(ground: Ground, origin: str, headers: dict[str, str], alive: Callable[[], bool], log: Path) -> None:
    """Ask until an answer comes, to every model. Raises NotHad with the end of the log."""
    deadline, last = time.monotonic() + _FIRST_ANSWER_S, "no connection"
    with httpx.Client(base_url=origin, headers=headers, timeout=60, trust_env=False) as http:
        for model in dict.fromkeys((ground.work.instant, ground.work.paced)):
            while True:
                if not alive():
                    raise NotHad(f"it ended at its start; log {log}: {last_lines(log, 8)}")
                if time.monotonic() > deadline:
                    raise NotHad(f"no answer within {_FIRST_ANSWER_S:.0f} s ({last}); log {log}: {last_lines(log, 8)}")
                try:
                    question = f"Are you there at {time.time_ns()}?"
                    answer = http.post("/v1/chat/completions", json=body(model, question, 1, stream=False))
                    last = f"{answer.status_code}: {answer.text[:200]}"
                    if answer.status_code == 200 and answer.json()["choices"]:
                        break
                except httpx.TransportError as error:
                    last = f"{type(error).__name__}: {error}"
                time.sleep(0.05)


def process_tree(known: ProcessRecord, role: str) -> dict[int, str]:
    """The process and all below it, in one role."""
    if not is_alive(known):
        return {}
    leader = psutil.Process(known.pid)
    return {process.pid: role for process in (leader, *leader.children(recursive=True))}


@contextmanager
def served(
    ground: Ground,
    name: str,
    told: str,
    argv: list[str],
    port: int,
    *,
    role: str = "gateway",
    env: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> Iterator[Candidate]:
    """A server of one command, up to its first answer; ended at the end, with all that it has started."""
    began, log, origin = time.perf_counter(), ground.log(name), f"http://127.0.0.1:{port}"
    mark = ground.folder / name
    known = spawn(argv, env=child_environment({"PYTHONPATH": "", **(env or {})}, mark=mark), log=log, cwd=ROOT)
    try:
        first_answer(ground, origin, headers or {}, lambda: is_alive(known), log)
        cold_s = time.perf_counter() - began
        yield Candidate(name, told, origin, lambda: process_tree(known, role), headers or {}, cold_s)
    finally:
        # Not by the tree: children outlive a leader that has died.
        end(find_all(mark, leaders=[known]), grace_s=10, first_signal=SIGTERM)
