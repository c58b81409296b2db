"""The embedded NATS server with JetStream: its configuration file, its start and its stop."""

import json
import secrets
import signal
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serve_app.local.files import write_private
from serve_app.local.processes import ProcessRecord, child_environment, end, is_alive, last_lines, spawn

_USER = "aifactory"
_MAX_PAYLOAD = 8 * 2**20
_MAX_GREETING = 2**16
# After a kill -9 the server reads its streams again before it listens.
_RECOVERY_TIMEOUT_S = 60.0


class NatsError(RuntimeError):
    """The embedded NATS server could not be started."""


class EmbeddedNats:
    """One NATS server whose streams and configuration lie under `folder`."""

    def __init__(self, folder: Path, port: int, log: Path, mark: Path | None = None) -> None:
        self._folder = folder.resolve()
        self._port = port
        self._log = log
        self._mark = mark

    def url(self) -> str:
        """The server's address, password included. Only after the first start."""
        return f"nats://{_USER}:{self._password()}@127.0.0.1:{self._port}"

    def start(self, timeout_s: float = _RECOVERY_TIMEOUT_S) -> ProcessRecord:
        """Write the configuration, start the server and wait until it answers. Raises NatsError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self._write_config()
        known = spawn(["nats-server", "-c", str(config)], env=child_environment({}, mark=self._mark), log=self._log)
        try:
            self._wait(known, timeout_s)
        except BaseException:
            self.stop(known)
            raise
        return known

    def stop(self, known: ProcessRecord, grace_s: float = 15.0) -> None:
        """End the server; acknowledged messages are on disk already."""
        end([known], grace_s=grace_s, first_signal=signal.SIGTERM)

    def _write_config(self) -> Path:
        config = self._folder / "server.conf"
        password = self._folder / "password"
        if not password.exists():
            write_private(password, secrets.token_urlsafe(24))
        # JSON strings are valid strings of the configuration language, whatever the path holds.
        text = f"""
server_name: aifactory
listen: "127.0.0.1:{self._port}"
max_payload: {_MAX_PAYLOAD}
jetstream {{
  store_dir: {json.dumps(str(self._folder / "jetstream"), ensure_ascii=False)}
  sync_interval: always
}}
authorization {{
  user: {json.dumps(_USER, ensure_ascii=False)}
  password: {json.dumps(self._password(), ensure_ascii=False)}
}}
"""
        write_private(config, text.lstrip())
        return config

    def _password(self) -> str:
        return (self._folder / "password").read_text().strip()

    def _wait(self, known: ProcessRecord, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (trouble := probe(self.url())) is not None:
            if not is_alive(known):
                raise NatsError(f"nats-server ended while starting; log {self._log}:\n{last_lines(self._log)}")
            if time.monotonic() > deadline:
                raise NatsError(f"nats-server did not answer within {timeout_s:.0f} s ({trouble}); log {self._log}")
            time.sleep(0.05)


def _line(connection: socket.socket) -> str:
    """The first line that the server says, and not a byte more: what follows may be encrypted."""
    said = b""
    while not said.endswith(b"\n") and len(said) < _MAX_GREETING and (byte := connection.recv(1)):
        said += byte
    return said.decode("utf-8", "replace")


def probe(url: str, timeout_s: float = 2.0) -> str | None:
    """None if the server at `url` lets us in and has JetStream, else what went wrong."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 4222
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            greeting = _line(connection)
            if not greeting.startswith("INFO "):
                return "what listens there is not a NATS server"
            with ExitStack() as stack:
                channel = connection
                if parts.scheme == "tls" or json.loads(greeting[5:]).get("tls_required"):
                    channel = stack.enter_context(ssl.create_default_context().wrap_socket(connection, server_hostname=host))
                wire = stack.enter_context(channel.makefile("rwb"))
                login: dict[str, object] = {"verbose": False, "pedantic": False, "lang": "python", "version": "0", "protocol": 1}
                if parts.username is not None and parts.password is None:
                    login["auth_token"] = unquote(parts.username)
                elif parts.username is not None:
                    login |= {"user": unquote(parts.username), "pass": unquote(parts.password or "")}
                wire.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
                wire.flush()
                answer = wire.readline().decode().strip()
    except OSError as error:
        return f"{host}:{port}: {error}"
    if answer != "PONG":
        return answer or "the server closed the connection"
    if not json.loads(greeting[5:]).get("jetstream"):
        return "JetStream is switched off on this server: start it with -js"
    return None
