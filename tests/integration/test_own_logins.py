"""Servers of your own with logins: what stands in their address is what they get, and a wrong one is told without it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg2
import pytest

from serve_app.bus.connection import NatsConnection
from serve_app.errors import Unavailable
from serve_app.local import nats, postgres
from serve_app.local.ports import choose_port
from serve_app.store.pool import PostgresPool

SECRET = "s:e/c@r%e t?#ü"
WRONG = "s:e/c@r%e t?#u"


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A key and its self-signed certificate for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    making += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(making, check=True, capture_output=True, timeout=60)
    return key, certificate


@contextmanager
def nats_server(folder: Path, authorization: str) -> Iterator[int]:
    port = choose_port(0, set())
    config = folder / "nats.conf"
    store = json.dumps(str(folder / "store"))
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: {store} }}\nauthorization {{ {authorization} }}\n')
    process = subprocess.Popen([str(Path(sys.executable).parent / "nats-server"), "-c", str(config), "-l", str(folder / "log")])
    try:
        deadline = time.monotonic() + 30
        while (nats.probe(f"nats://127.0.0.1:{port}") or "").endswith("refused"):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    ("authorization", "login", "wrong"),
    [
        (
            f"user: ann, password: {json.dumps(SECRET, ensure_ascii=False)}",
            f"ann:{quote(SECRET, safe='')}",
            f"ann:{quote(WRONG, safe='')}",
        ),
        (f"token: {json.dumps(SECRET, ensure_ascii=False)}", quote(SECRET, safe=""), quote(WRONG, safe="")),
    ],
    ids=["password", "token"],
)
async def test_nats_with_a_login(tmp_path: Path, authorization: str, login: str, wrong: str) -> None:
    with nats_server(tmp_path, authorization) as port:
        connection = NatsConnection(f"nats://{login}@127.0.0.1:{port}", "test", reconnect_wait_s=0.1)
        stranger = NatsConnection(f"nats://{wrong}@127.0.0.1:{port}", "test", reconnect_wait_s=0.1)
        try:
            connection.start()
            await connection.wait_connected(30)
            assert nats.probe(f"nats://{login}@127.0.0.1:{port}") is None
            stranger.start()
            with pytest.raises(Unavailable) as caught:
                await stranger.wait_connected(3)
            told = caught.value.message + str(nats.probe(f"nats://{wrong}@127.0.0.1:{port}"))
            assert "uthorization" in told
            assert WRONG not in told
            assert wrong not in told
        finally:
            await connection.close()
            await stranger.close()


async def test_nats_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = _certificate(tmp_path)
    paths = f"cert_file: {json.dumps(str(certificate))}, key_file: {json.dumps(str(key))}"
    with nats_server(tmp_path, f"user: ann, password: secret }}\ntls {{ {paths}") as port:
        address = f"tls://ann:secret@127.0.0.1:{port}"
        connection = NatsConnection(address, "test", reconnect_wait_s=0.1)
        stranger = NatsConnection(address, "test", reconnect_wait_s=0.1)
        try:
            stranger.start()  # trusts nobody who made this certificate
            with pytest.raises(Unavailable, match="certificate verify failed"):
                await stranger.wait_connected(3)
            assert "certificate verify failed" in str(nats.probe(address))
            await stranger.close()
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            connection.start()
            await connection.wait_connected(30)
            assert nats.probe(address) is None
        finally:
            await connection.close()
            await stranger.close()


async def test_postgres_with_a_login(postgres_dsn: str) -> None:
    parts = urlsplit(postgres_dsn)

    def dsn(password: str) -> str:
        return urlunsplit(parts._replace(netloc=f"ann:{quote(password, safe='')}@{parts.hostname}:{parts.port}"))

    owner = psycopg2.connect(postgres_dsn)
    owner.autocommit = True
    with owner.cursor() as cursor:
        cursor.execute("CREATE ROLE ann LOGIN PASSWORD %s", (SECRET,))
    try:
        pool, stranger = PostgresPool(dsn(SECRET)), PostgresPool(dsn(WRONG))
        await pool.ping()
        assert postgres.probe(dsn(SECRET)) is None
        with pytest.raises(Unavailable) as caught:
            await stranger.ping()
        told = caught.value.message + str(postgres.probe(dsn(WRONG)))
        assert "password authentication failed" in told
        assert WRONG not in told
        assert quote(WRONG, safe="") not in told
        await pool.close()
        await stranger.close()
    finally:
        with owner.cursor() as cursor:
            cursor.execute("DROP ROLE ann")
        owner.close()
