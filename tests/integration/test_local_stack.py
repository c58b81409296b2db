"""Parts of the embedded stack: ports, state, lock, and processes that are known again."""

import io
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from serve_app.local.ports import choose_port, is_free
from serve_app.local.processes import ProcessRecord, child_environment, end, find_all, is_alive, record, spawn
from serve_app.local.progress import Progress
from serve_app.local.purge import purge
from serve_app.local.run_dir import run_dir_for
from serve_app.local.stack import Stack
from serve_app.local.state import LockedError, StackState, load_state, save_state, stack_lock, state_file
from serve_app.local.teardown import running, tear_down
from serve_app.settings import Settings

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# A parent that starts a child in the same session, tells its pid, and waits.
_FAMILY = [
    sys.executable,
    "-c",
    f"import subprocess, sys, time; p = subprocess.Popen({_SLEEP!r}, env={{}}); print(p.pid, flush=True); time.sleep(600)",
]


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def _state(state_dir: Path) -> StackState:
    return StackState(
        config="simulated", state_dir=state_dir, run_dir=state_dir / "run", host="127.0.0.1", api_port=1, dagster_port=2
    )


def test_taken_port_moves_aside(listener: int) -> None:
    taken: set[int] = set()
    assert not is_free(listener)
    first = choose_port(listener, taken)
    second = choose_port(listener, taken)
    assert listener < first < second
    assert taken == {first, second}


def test_moved_ports_are_announced_and_recorded(listener: int, tmp_path: Path) -> None:
    out = io.StringIO()
    settings = Settings(config="simulated", state_dir=tmp_path, port=listener)
    stack = Stack(settings, Progress(Console(file=out)))
    assert stack._state.api_port > listener
    assert f"port {listener} for the API is taken, using {stack._state.api_port}" in out.getvalue()


def test_own_servers_get_no_port(tmp_path: Path) -> None:
    settings = Settings(
        config="simulated", state_dir=tmp_path, postgres_dsn="postgresql://u:p@h/d", nats_url="nats://h", ray_address="h:1"
    )
    state = Stack(settings, Progress(Console(file=io.StringIO())))._state
    assert (state.postgres_port, state.nats_port, state.ray_ports) == (None, None, None)
    assert (state.postgres_dsn, state.nats_url, state.ray_address) == ("postgresql://u:p@h/d", "nats://h", "h:1")


def test_state_file_is_private_whole_and_gone_after_down(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    state = _state(tmp_path)
    save_state(state)
    assert load_state(tmp_path) == state
    assert stat.S_IMODE(state_file(tmp_path).stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["stack.json"]
    state_file(tmp_path).write_text('{"phase": "rea')
    with pytest.raises(RuntimeError, match=r"stack\.json is damaged"):
        load_state(tmp_path)


def test_recycled_pid_is_not_ours_and_is_never_ended(tmp_path: Path) -> None:
    stranger = subprocess.Popen(_SLEEP)
    try:
        true = record(stranger.pid)
        recycled = ProcessRecord(pid=true.pid, started=true.started - 1)
        assert is_alive(true)
        assert not is_alive(recycled)
        assert end([recycled], grace_s=0.1, first_signal=signal.SIGKILL) == []
        state = _state(tmp_path)
        state.processes["ray"] = recycled
        save_state(state)
        assert not running(state)
        assert tear_down(tmp_path, state) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(10)


def test_tear_down_ends_what_was_never_recorded(tmp_path: Path) -> None:
    spawn(_SLEEP, env=child_environment({}, mark=tmp_path), log=tmp_path / "logs" / "x.log")
    assert tear_down(tmp_path, None) == 1
    assert find_all(tmp_path) == []


def test_orphans_of_a_killed_leader_are_found_by_their_session(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "family.log"
    leader = spawn(_FAMILY, env=child_environment({}, mark=tmp_path), log=log)
    child = _first_number(log)
    os.kill(leader.pid, signal.SIGKILL)
    _until(lambda: not is_alive(leader))
    assert find_all(tmp_path) == []  # the child has no mark of its own
    state = _state(tmp_path)
    state.processes["ray"] = leader
    assert tear_down(tmp_path, state) == 1
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_stubborn_process_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    log = tmp_path / "x.log"
    known = spawn([sys.executable, "-c", code], env=child_environment({}), log=log)
    _first_number(log)
    assert end([known], grace_s=0.2, first_signal=signal.SIGTERM) == [known.pid]
    assert not is_alive(known)


def test_lock_is_exclusive_names_its_holder_and_leaves_no_file(tmp_path: Path) -> None:
    with stack_lock(tmp_path):
        with pytest.raises(LockedError, match=str(os.getpid())) as caught, stack_lock(tmp_path):
            pass
        assert caught.value.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []
    with stack_lock(tmp_path):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = "import sys, time, pathlib; from serve_app.local.state import stack_lock\n"
    code += "with stack_lock(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(600)"
    log = tmp_path / "x.log"
    known = spawn([sys.executable, "-c", code, str(tmp_path / "s")], env=child_environment({}), log=log)
    _first_number(log)
    with pytest.raises(LockedError), stack_lock(tmp_path / "s"):
        pass
    end([known], grace_s=0, first_signal=signal.SIGKILL)
    with stack_lock(tmp_path / "s"):
        pass


def test_socket_paths_stay_short(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    for state_dir in (deep, Path("/s")):
        # HAProxy's own part: "/ha/", 56 hex digits, "/admin.sock", and a temporary suffix.
        assert len(str(run_dir_for(state_dir))) + 4 + 56 + 11 + 12 <= 107
    assert run_dir_for(deep) != run_dir_for(deep / "other")


def test_purge_spares_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    purge(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def _first_number(log: Path) -> int:
    _until(lambda: log.exists() and log.read_text().strip() != "")
    return int(log.read_text().split()[0])


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
