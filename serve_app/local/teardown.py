"""End everything that belongs to one stack, and nothing else, whatever state it is in."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from serve_app.local.dagster_home import code_socket
from serve_app.local.nats import EmbeddedNats
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.local.processes import ProcessRecord, child_environment, end, find_all, is_alive
from serve_app.local.ray_node import EmbeddedRay
from serve_app.local.run_dir import run_dir_for
from serve_app.local.serve_file import serve_file
from serve_app.local.state import StackState, settings_file, state_file

_WITHDRAW_TIMEOUT_S = 150.0  # Serve drains gateways for 30 s, whether somebody is connected or not
_USERS_GRACE_S = 4.0


class TeardownError(RuntimeError):
    """Some process could not be ended."""


def ray_of(state: StackState, num_cpus: int = 1) -> EmbeddedRay | None:
    """The embedded Ray node of a stack; None if it uses somebody else's cluster."""
    if state.ray_ports is None:
        return None
    return EmbeddedRay(
        state.state_dir, state.run_dir, state.host, state.ray_ports, num_cpus, state.state_dir / "logs" / "ray.log"
    )


def stack_processes(state_dir: Path, state: StackState | None) -> list[ProcessRecord]:
    """All live processes of the stack, recorded or not."""
    run_dir = state.run_dir if state else run_dir_for(state_dir)
    leaders = state.processes.values() if state else ()
    return find_all(state_dir, leaders=leaders, folders=[run_dir / "ray"])


def tear_down(state_dir: Path, state: StackState | None) -> int:
    """End the stack: those who use the servers first, then the servers. Returns how many processes there were.

    Safe to call on a half-dead stack, or without a state file. Raises TeardownError if something survives.
    """
    count = len(stack_processes(state_dir, state))
    trouble = _withdraw(state) if state else None
    if state is not None:
        _end_users(state)
        _end_servers(state)
    for _ in range(3):
        # What was never recorded, or started while we were at it.
        end(stack_processes(state_dir, state), grace_s=5.0, first_signal=signal.SIGTERM)
        if not stack_processes(state_dir, state):
            break
    else:
        left = [known.pid for known in stack_processes(state_dir, state)]
        raise TeardownError(f"processes {left} did not end; look at them with `ps -fp {' '.join(map(str, left))}`")
    run_dir = state.run_dir if state else run_dir_for(state_dir)
    shutil.rmtree(run_dir / "ha", ignore_errors=True)
    code_socket(state_dir).unlink(missing_ok=True)
    settings_file(state_dir).unlink(missing_ok=True)
    serve_file(state_dir).unlink(missing_ok=True)
    state_file(state_dir).unlink(missing_ok=True)
    if trouble is not None:
        raise TeardownError(trouble)
    return count


def _end_users(state: StackState) -> None:
    """Dagster and Ray, with everything below them, all at once: asked one by one, Ray would drain its node for 30 s."""
    servers = [state.processes[name] for name in ("postgres", "nats") if name in state.processes]
    spared = {known.pid for known in find_all(None, leaders=servers)}
    users = [known for known in stack_processes(state.state_dir, state) if known.pid not in spared]
    end(users, grace_s=_USERS_GRACE_S, first_signal=signal.SIGTERM)


def _end_servers(state: StackState) -> None:
    logs = state.state_dir / "logs"
    if state.nats_port is not None and (known := state.processes.get("nats")) is not None:
        EmbeddedNats(state.state_dir / "nats", state.nats_port, logs / "nats.log").stop(known)
    if state.postgres_port is not None and (known := state.processes.get("postgres")) is not None:
        EmbeddedPostgres(state.state_dir / "postgres", state.postgres_port, logs / "postgres.log").stop(known)


def _withdraw(state: StackState) -> str | None:
    """On a cluster that is not ours, remove our applications; the rest of it is none of our business. Returns what failed."""
    if state.ray_ports is not None or state.ray_address is None or not settings_file(state.state_dir).exists():
        return None
    command = [
        sys.executable,
        "-m",
        "serve_app.local.on_cluster",
        "withdraw",
        state.ray_address,
        str(settings_file(state.state_dir)),
    ]
    try:
        subprocess.run(
            command,
            check=True,
            env=child_environment({}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_WITHDRAW_TIMEOUT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr if isinstance(error.stderr, str) else ""
        return f"the applications could not be removed from Ray at {state.ray_address} ({error}): {said.strip()[-500:]}"
    return None


def running(state: StackState | None) -> bool:
    """True if any recorded process of the stack lives."""
    return state is not None and (
        any(is_alive(known) for known in state.processes.values()) or (state.phase == "ready" and not state.processes)
    )
