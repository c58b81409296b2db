"""Where the processor's time goes: seconds of CPU by part of the stack, which other load on the machine hardly changes."""

import contextlib
from collections import defaultdict
from typing import Final

import psutil

from serve_app.local.processes import find_all
from serve_app.local.state import StackState

# What a process is called, by a part of its command line; the first that fits.
_PARTS: Final = {
    "debate-worker": "worker",
    ":gateway": "gateway",
    ":model-": "replicas",
    "haproxy": "haproxy",
    "postgres": "postgres",
    "nats-server": "nats",
}


def cpu_seconds(state: StackState) -> dict[str, float]:
    """Seconds of CPU that the stack's living processes have used so far, by part; `other` is mostly Ray and Dagster's web."""
    used: dict[str, float] = defaultdict(float)
    for found in find_all(state.state_dir, leaders=state.processes.values(), folders=(state.run_dir,)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(found.pid)
            title, times = " ".join(process.cmdline()), process.cpu_times()
            part = next((part for sign, part in _PARTS.items() if sign in title), "other")
            used[part] += times.user + times.system
    return used
