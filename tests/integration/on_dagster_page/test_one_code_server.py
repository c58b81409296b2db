"""Our definitions are loaded by one code server, which web server and daemon ask; `down` ends it with them."""

import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from dagster import DagsterInstance
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.controller import create_daemon_grpc_server_registry

from dagster_project.home import LOCATION
from dagster_project.warm.instance import open_instance
from serve_app.local.dagster_home import DagsterError, DagsterUi, code_socket, write_home
from serve_app.local.ports import choose_port
from serve_app.local.processes import MARK, child_environment, is_alive, last_lines
from serve_app.local.purge import purge
from serve_app.local.run_dir import run_dir_for
from serve_app.local.state import StackState
from serve_app.local.teardown import stack_processes, tear_down
from serve_app.settings import Settings
from tests.integration.on_dagster_page.page import START_S


@pytest.fixture
def settings(postgres_dsn: str, tmp_path: Path) -> Settings:
    made = Settings(config="simulated", state_dir=tmp_path, postgres_dsn=postgres_dsn)
    open_instance(made).dispose()  # makes Dagster's database
    return made


@pytest.fixture
def ui(settings: Settings) -> DagsterUi:
    env = child_environment({"DAGSTER_HOME": str(write_home(settings))}, mark=settings.state_dir)
    folder = settings.state_dir
    return DagsterUi(folder / "dagster", "127.0.0.1", choose_port(0, set()), folder / "logs", env, code_socket(folder))


@pytest.fixture
def state(settings: Settings, ui: DagsterUi) -> Iterator[StackState]:
    folder = settings.state_dir
    made = StackState(
        config="simulated", state_dir=folder, run_dir=run_dir_for(folder), host=ui.host, api_port=1, dagster_port=ui.port
    )
    yield made
    tear_down(folder, made)
    purge(folder)


def test_page_and_daemon_ask_one_code_server_for_good(ui: DagsterUi, state: StackState) -> None:
    code = state.processes["dagster-code-server"] = ui.launch_code_server()
    ui.wait_for_code(code, START_S)
    assert stat.S_IMODE(ui.socket.parent.stat().st_mode) == 0o700, "it asks for no login"
    web = state.processes["dagster-webserver"] = ui.launch_web()
    daemon = state.processes["dagster-daemon"] = ui.launch_daemon()
    ui.wait(code, web, daemon, START_S)
    deadline = time.monotonic() + START_S
    while "Instance is configured with the following daemons" not in last_lines(ui.daemon_log, 1000):  # it has loaded them
        assert is_alive(daemon), last_lines(ui.daemon_log)
        assert time.monotonic() < deadline, last_lines(ui.daemon_log)
        time.sleep(0.1)
    assert _code_servers(state) == [code.pid]

    # What the daemon does every minute.
    with (
        DagsterInstance.from_config(str(ui.home)) as instance,
        create_daemon_grpc_server_registry(instance) as registry,
        WorkspaceProcessContext(
            instance, WorkspaceFileTarget([str(ui.home / "workspace.yaml")]), grpc_server_registry=registry
        ) as workspace,
    ):
        servers = set()
        for _ in range(3):
            entry = workspace.get_current_workspace().code_location_entries[LOCATION]
            assert entry.load_error is None, entry.load_error
            assert isinstance(entry.code_location, GrpcServerCodeLocation)
            servers.add(entry.code_location.server_id)
            registry.clear_all_grpc_endpoints()
            workspace.refresh_workspace()
            assert _code_servers(state) == [code.pid]
        assert len(servers) == 1

    assert tear_down(state.state_dir, state) >= 3
    assert stack_processes(state.state_dir, state) == []
    assert not is_alive(code)
    assert not ui.socket.exists()


def test_definitions_that_do_not_load_end_the_start_with_the_reason(
    ui: DagsterUi, state: StackState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_project.home.DEFINITIONS_MODULE", "dagster_project.nothing_of_this_name")
    code = state.processes["dagster-code-server"] = ui.launch_code_server()
    with pytest.raises(DagsterError, match=r"(?s)code server ended; log .*dagster-code-server\.log.*nothing_of_this_name"):
        ui.wait_for_code(code, START_S)
    assert state.dead() == ["dagster-code-server"]


def _code_servers(state: StackState) -> list[int]:
    """Those of the stack, and any that this process started without a mark, as Dagster does."""
    started = [child.pid for child in psutil.Process().children(recursive=True) if not _marked(child)]
    known = {one.pid for one in stack_processes(state.state_dir, state)}
    return [pid for pid in sorted(known.union(started)) if _serves_code(pid)]


def _marked(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return MARK in process.environ()
    return True


def _serves_code(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        words = psutil.Process(pid).cmdline()
        return {"api", "grpc"} <= set(words) or "code-server" in words
    return False
