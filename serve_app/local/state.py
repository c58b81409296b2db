"""What is known of a running stack (`stack.json`), and the lock that lets one command change it at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from serve_app.local.files import write_private
from serve_app.local.processes import ProcessRecord, is_alive
from serve_app.local.ray_node import RayPorts


class StackState(BaseModel):
    """Processes, ports and addresses of one stack. Holds passwords: the file is for its owner only."""

    phase: Literal["starting", "ready"] = "starting"
    config: str
    state_dir: Path
    run_dir: Path
    host: str
    api_port: int
    dagster_port: int
    postgres_port: int | None = None
    nats_port: int | None = None
    ray_ports: RayPorts | None = None
    postgres_dsn: str | None = None
    nats_url: str | None = None
    ray_address: str | None = None
    # Component (postgres, nats, ray, …) to its leading process.
    processes: dict[str, ProcessRecord] = Field(default_factory=dict)

    @property
    def reach_host(self) -> str:
        """The host a client on this machine uses; an address to listen on everywhere is none to connect to."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104

    @property
    def origin(self) -> str:
        """The API's address without a path."""
        return f"http://{self.reach_host}:{self.api_port}"

    @property
    def api_key_file(self) -> Path:
        """Where the first API key is kept."""
        return self.state_dir / "api_key"

    def dead(self) -> list[str]:
        """Components whose leading process has ended."""
        return [name for name, known in self.processes.items() if not is_alive(known)]


def state_file(state_dir: Path) -> Path:
    """Where the state of the stack in `state_dir` is kept."""
    return state_dir / "stack.json"


def settings_file(state_dir: Path) -> Path:
    """The settings the stack runs with, addresses filled in; read by the helpers that `up` starts."""
    return state_dir / "settings.json"


def save_state(state: StackState) -> None:
    """Write the state in one step, so that a kill leaves the old or the new one."""
    write_private(state_file(state.state_dir), state.model_dump_json(indent=2))


def load_state(state_dir: Path) -> StackState | None:
    """The recorded state, or None. Raises RuntimeError if the file cannot be read as a state."""
    path = state_file(state_dir)
    try:
        return StackState.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RuntimeError(f"{path} is damaged ({error.error_count()} faults): remove it, then run `aifactory down`") from error


class LockedError(RuntimeError):
    """Another command is changing the stack."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} is starting or stopping this stack (lock {path}); wait for it, or end it with Ctrl-C")
        self.pid = pid


@contextlib.contextmanager
def stack_lock(state_dir: Path) -> Iterator[None]:
    """Hold the stack's lock, and leave no lock file behind. Raises LockedError at once if somebody holds it."""
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / "lock"
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        # Removed while still held: whoever opened this file meanwhile notices in _acquire and tries again.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode()
            os.close(descriptor)
            raise LockedError(path, int(holder) if holder.isdigit() else None) from error
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
