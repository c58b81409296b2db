"""Processes that outlive the command line: start them apart from the terminal, know them again, end them.

A pid alone is never trusted, because the kernel gives it to somebody else later. A process is known by
its pid together with the moment it started.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

# Every process of a stack carries the stack's folder under this name, so that `down` finds even those
# that a killed `up` had no time to write down.
MARK = "AIFACTORY_STACK"


class ProcessRecord(BaseModel):
    """A process as it is kept in the state file."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: int


def start_moment(pid: int) -> int | None:
    """When the process started, in the kernel's own ticks; None if there is no such process or it is a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():
            # The name in parentheses may hold spaces; the start time is the 20th field after it.
            return int(stat.read_text().rpartition(")")[2].split()[19])
        return int(process.create_time() * 100)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def record(pid: int) -> ProcessRecord:
    """The record of a live process. A process that has already ended gets a record that matches nothing."""
    return ProcessRecord(pid=pid, started=start_moment(pid) or -1)


def is_alive(known: ProcessRecord | None) -> bool:
    """True if exactly the recorded process still runs (a recycled pid is another process)."""
    if known is None:
        return False
    _reap(known.pid)
    return start_moment(known.pid) == known.started


def child_environment(extra: Mapping[str, str], mark: Path | None = None) -> dict[str, str]:
    """The environment for a child process: ours, the virtual environment's programs first on PATH, and `extra`."""
    env = dict(os.environ)  # noqa: TID251 - handed on to child processes, nothing is read from it
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["PYTHONUNBUFFERED"] = "1"
    env.update(extra)
    if mark is not None:
        env[MARK] = str(mark)
    return env


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
) -> ProcessRecord:
    """Start a program in a session of its own (Ctrl-C and a closing terminal do not reach it), output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
        )
    known = record(child.pid)
    # The child is on its own from here on; without this Python warns that nobody waits for it.
    child.returncode = 0
    return known


def end(known: Iterable[ProcessRecord], *, grace_s: float, first_signal: int) -> list[int]:
    """Send `first_signal`, wait up to `grace_s`, then kill what is left. Returns the pids that had to be killed."""
    waiting = [k for k in known if is_alive(k)]
    _signal(waiting, first_signal)
    stubborn = _wait_gone(waiting, grace_s)
    _signal(stubborn, signal.SIGKILL)
    _wait_gone(stubborn, 5.0)
    return [k.pid for k in stubborn]


def _signal(known: Iterable[ProcessRecord], number: int) -> None:
    for one in known:
        if is_alive(one):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, number)


def _wait_gone(known: Iterable[ProcessRecord], timeout_s: float) -> list[ProcessRecord]:
    """Wait until none of them lives; returns those that still do. A zombie counts as gone: in a container
    without a real init nobody may ever collect it."""
    deadline = time.monotonic() + timeout_s
    left = [k for k in known if is_alive(k)]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [k for k in left if is_alive(k)]
    return left


def find_all(mark: Path | None, *, leaders: Iterable[ProcessRecord] = (), folders: Iterable[Path] = ()) -> list[ProcessRecord]:
    """All live processes of the stack `mark`, except this process and its ancestors.

    A process belongs to the stack if one of these holds, and each is checked because each can be lost:
    it carries the mark in its environment (Ray workers overwrite theirs with their title); it sits in the session
    of such a process or of a recorded leader (until a leader's pid is another process); it writes its output under
    one of `folders`; it descends from a process that belongs.
    """
    own = psutil.Process()
    spared = {own.pid, *(p.pid for p in own.parents())}
    roots = [f"{folder}{os.sep}" for folder in folders]
    candidates = [p for p in psutil.process_iter() if p.pid not in spared]
    found = {p.pid for p in candidates if _carries(p, mark) or _writes_under(p, roots)}
    sessions = {sid for pid in found if (sid := _session(pid)) is not None}
    sessions |= {k.pid for k in leaders if start_moment(k.pid) in (None, k.started)}
    sessions -= {_session(pid) for pid in spared}
    found |= {p.pid for p in candidates if _session(p.pid) in sessions}
    for pid in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)} - spared
    return [record(pid) for pid in sorted(found) if start_moment(pid) is not None]


def _carries(process: psutil.Process, mark: Path | None) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return mark is not None and process.environ().get(MARK) == str(mark)
    return False


def _writes_under(process: psutil.Process, roots: Sequence[str]) -> bool:
    for number in (1, 2):
        with contextlib.suppress(OSError):
            target = str(Path(f"/proc/{process.pid}/fd/{number}").readlink())
            if any(target.startswith(root) for root in roots):
                return True
    return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _reap(pid: int) -> None:
    """Collect a child of ours that has ended; a zombie would keep its pid."""
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)


def last_lines(log: Path, count: int = 20) -> str:
    """The end of a log file, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return "(no log yet)"
