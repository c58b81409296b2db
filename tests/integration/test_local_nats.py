"""The embedded NATS server keeps acknowledged messages over kill -9 and leaves nothing behind."""

import os
import signal
import stat
from pathlib import Path

import nats
import pytest

from serve_app.local.nats import EmbeddedNats, NatsError, probe
from serve_app.local.ports import choose_port
from serve_app.local.processes import find_all, is_alive


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
