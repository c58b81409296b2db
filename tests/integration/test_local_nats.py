"""The embedded NATS server keeps acknowledged messages over kill -9 and leaves nothing behind."""

import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from serve_app.local.nats import EmbeddedNats, NatsError, probe
from serve_app.local.ports import choose_port
from serve_app.local.processes import child_environment, end, find_all, is_alive, spawn
from tests.house.tree import ROOT


@pytest.fixture
def server(tmp_path: Path) -> EmbeddedNats:
    # A blank and a quote in the path must not break the configuration file.
    return EmbeddedNats(tmp_path / 'a "b" c', choose_port(0, set()), tmp_path / "nats.log", mark=tmp_path)


async def test_messages_survive_kill_and_stop_leaves_nothing(server: EmbeddedNats, tmp_path: Path) -> None:
    known = server.start()
    try:
        connection = await nats.connect(server.url(), allow_reconnect=False)
        await connection.jetstream().add_stream(name="T", subjects=["t"])
        await connection.jetstream().publish("t", b"kept")
        os.kill(known.pid, signal.SIGKILL)
        await connection.close()

        known = server.start()
        assert probe(server.url()) is None
        connection = await nats.connect(server.url(), allow_reconnect=False)
        message = await connection.jetstream().get_msg("T", 1)
        assert message.data == b"kept"
        await connection.close()
    finally:
        server.stop(known)
    assert not is_alive(known)
    assert find_all(tmp_path) == []
    assert probe(server.url()) is not None


def test_login_is_needed_and_private(server: EmbeddedNats, tmp_path: Path) -> None:
    known = server.start()
    try:
        assert "Authorization" in (probe(server.url().replace("aifactory:", "aifactory:x")) or "")
        for name in ("server.conf", "password"):
            assert stat.S_IMODE((tmp_path / 'a "b" c' / name).stat().st_mode) == 0o600
    finally:
        server.stop(known)


def test_taken_port_is_told_with_the_log(server: EmbeddedNats, tmp_path: Path) -> None:
    known = server.start()
    port = int(server.url().rpartition(":")[2])
    second = EmbeddedNats(tmp_path / "second", port, tmp_path / "second.log", mark=tmp_path)
    try:
        with pytest.raises(NatsError, match=r"ended while starting; log .*second\.log"):
            second.start()
    finally:
        server.stop(known)
    assert find_all(tmp_path) == []


@pytest.mark.parametrize("which", ["embedded", "shipped"])
def test_what_is_acknowledged_is_on_disk(which: str, server: EmbeddedNats, tmp_path: Path) -> None:
    """Asked of a real server that runs with the configuration: a request that was accepted outlives a power cut."""
    config = ROOT / "deploy" / "systemd" / "nats.conf"
    if which == "embedded":
        server.stop(server.start())  # now its configuration is written
        config = tmp_path / 'a "b" c' / "server.conf"
    assert jetstream_of(config, tmp_path)["sync_always"] is True


def jetstream_of(config: Path, folder: Path) -> dict[str, Any]:
    """What a server that was started with this file says about its JetStream."""
    taken: set[int] = set()
    port, monitor = choose_port(0, taken), choose_port(0, taken)
    env = child_environment({"NATS_STORE": str(folder / "store"), "NATS_PASSWORD": "x"}, mark=folder)
    options = ["-a", "127.0.0.1", "-p", str(port), "-m", str(monitor)]
    known = spawn(["nats-server", "-c", str(config), *options], env=env, log=folder / "varz.log")
    deadline = time.monotonic() + 60
    try:
        while True:
            assert is_alive(known), (folder / "varz.log").read_text()
            try:
                told: dict[str, Any] = httpx.get(f"http://127.0.0.1:{monitor}/varz", timeout=10, trust_env=False).json()
                return dict(told["jetstream"]["config"])
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)
    finally:
        end([known], grace_s=15, first_signal=signal.SIGTERM)
