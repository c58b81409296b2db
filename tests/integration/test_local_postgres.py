"""The embedded Postgres survives kill -9 and leaves nothing behind."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from serve_app.local.ports import choose_port
from serve_app.local.postgres import EmbeddedPostgres, ensure_database, probe, versions
from serve_app.local.postgres_account import PostgresError
from serve_app.local.processes import is_alive


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: as root, Postgres runs as another user and has to pass every folder above its own.
    with TemporaryDirectory(prefix="aifactory-pg-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def _postgres_in(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(folder)):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def server(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder / "postgres", choose_port(0, set()), folder / "logs" / "postgres.log")


def test_start_kill_start_stop(server: EmbeddedPostgres, folder: Path) -> None:
    known = server.start()
    try:
        assert versions(server.dsn()) == (18, True)
        ensure_database(server.dsn(), "kept")
        os.kill(known.pid, signal.SIGKILL)
        known = server.start()
        assert probe(server.dsn("kept")) is None
    finally:
        server.stop(known)
    assert not is_alive(known)
    assert _postgres_in(folder) == []
    assert not (folder / "postgres" / "data" / "postmaster.pid").exists()


def test_stop_after_kill_leaves_nothing(server: EmbeddedPostgres, folder: Path) -> None:
    known = server.start()
    os.kill(known.pid, signal.SIGKILL)
    server.stop(known)
    assert _postgres_in(folder) == []


def test_stale_pid_file_of_a_recycled_pid_does_not_hinder(server: EmbeddedPostgres, folder: Path) -> None:
    server.stop(server.start())
    pid_file = folder / "postgres" / "data" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{pid_file.parent}\n1\n1\n\n127.0.0.1\n")
    known = server.start()
    try:
        assert probe(server.dsn()) is None
    finally:
        server.stop(known)
    assert psutil.pid_exists(os.getpid())


def test_half_made_data_folder_is_made_again(server: EmbeddedPostgres, folder: Path) -> None:
    building = folder / "postgres" / "data.building"
    building.mkdir(parents=True)
    (building / "PG_VERSION").write_text("18\n")
    known = server.start()
    try:
        assert probe(server.dsn()) is None
    finally:
        server.stop(known)
    assert not building.exists()


def test_password_is_needed_and_private(server: EmbeddedPostgres, folder: Path) -> None:
    known = server.start()
    try:
        password = (folder / "postgres" / "password").read_text().strip()
        trouble = probe(server.dsn().replace(password, "wrong"))
        assert trouble is not None
        assert "password authentication failed" in trouble
        assert stat.S_IMODE((folder / "postgres" / "password").stat().st_mode) == 0o600
    finally:
        server.stop(known)


def test_taken_port_is_told_with_the_log(server: EmbeddedPostgres, folder: Path) -> None:
    known = server.start()
    port = int(server.dsn().rpartition(":")[2].partition("/")[0])
    second = EmbeddedPostgres(folder / "second", port, folder / "logs" / "second.log")
    try:
        with pytest.raises(PostgresError, match=r"ended while starting; log .*second\.log"):
            second.start()
    finally:
        server.stop(known)
    assert _postgres_in(folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_root_may_keep_its_checkout_below_a_closed_folder(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "postgres", choose_port(0, set()), folder / "postgres.log")
    known = server.start()
    try:
        assert probe(server.dsn()) is None
        assert psutil.Process(known.pid).uids().effective != 0
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        os.kill(known.pid, signal.SIGKILL)
        known = server.start()
    finally:
        server.stop(known)
    assert _postgres_in(folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_unreachable_folder_is_told_with_a_cure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "postgres", choose_port(0, set()), folder / "postgres.log")
    monkeypatch.setenv("PATH", str(folder))  # no setpriv there
    with pytest.raises(PostgresError, match=r"may not enter .*closed; allow it \(chmod o\+x"):
        server.start()
