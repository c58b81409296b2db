"""A Postgres and a NATS server that may be killed, and are started again as an operator's supervisor would."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve_app.local import nats
from serve_app.local.ports import choose_port
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.local.processes import ProcessRecord, child_environment, end, is_alive, spawn

_START_TIMEOUT_S = 30.0


@dataclass
class Outage:
    """When a server was away, Unix seconds; `until` is None while it is."""

    since: float
    until: float | None = None

    def touches(self, start: float, end: float, margin_s: float = 0.0) -> bool:
        return self.since <= end and (self.until is None or start <= self.until + margin_s)


class MortalServer:
    """What both have in common: kill -9, start, and a record of the time between."""

    def __init__(self) -> None:
        self.outages: list[Outage] = []
        self._process: ProcessRecord | None = None

    @property
    def alive(self) -> bool:
        return is_alive(self._process)

    def kill(self) -> int:
        """SIGKILL to the server that we started. Returns its pid."""
        process = self._process
        if process is None or not is_alive(process):
            raise RuntimeError(f"{type(self).__name__} is not running; it cannot be killed")
        self.outages.append(Outage(time.time()))
        os.kill(process.pid, signal.SIGKILL)
        end([process], grace_s=5, first_signal=signal.SIGKILL)
        return process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = self._launch()
        if self.outages and self.outages[-1].until is None:
            self.outages[-1].until = time.time()

    def _launch(self) -> ProcessRecord:
        raise NotImplementedError


class MortalPostgres(MortalServer):
    """The embedded Postgres of the product, started by us."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._server = EmbeddedPostgres(folder / "postgres", choose_port(0, set()), folder / "log" / "postgres.log")

    def _launch(self) -> ProcessRecord:
        return self._server.start()

    def stop(self) -> None:
        if self._process is not None:
            self._server.stop(self._process)

    def dsn(self, database: str | None = None) -> str:
        return self._server.dsn(database) if database else self._server.dsn()


class MortalNats(MortalServer):
    """nats-server with JetStream on disk, every write synced, and its monitoring port open."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "nats"
        self._log = folder / "log" / "nats.log"
        taken: set[int] = set()
        port, self._monitor = choose_port(0, taken), choose_port(0, taken)
        self.url = f"nats://127.0.0.1:{port}"
        self._config = f"""
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{self._monitor}"
jetstream {{
  store_dir: {json.dumps(str(self._folder / "jetstream"))}
  sync_interval: always
  max_memory_store: 1GB
  max_file_store: 1GB
}}
"""

    def _launch(self) -> ProcessRecord:
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "server.conf"
        config.write_text(self._config)
        process = spawn(["nats-server", "-c", str(config)], env=child_environment({}), log=self._log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (trouble := nats.probe(self.url)) is not None:
            if not is_alive(process) or time.monotonic() > deadline:
                end([process], grace_s=1, first_signal=signal.SIGKILL)
                raise RuntimeError(f"nats-server did not start ({trouble}); log {self._log}:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        return process

    def stop(self) -> None:
        if self._process is not None:
            end([self._process], grace_s=10, first_signal=signal.SIGTERM)

    def subscriptions(self) -> dict[str, list[str]]:
        """Subjects that each connection stands on, by the name of the connection."""
        found: dict[str, list[str]] = {}
        answer: dict[str, Any] = httpx.get(
            f"http://127.0.0.1:{self._monitor}/connz?subs=1&limit=1024", timeout=10, trust_env=False
        ).json()
        for connection in answer["connections"]:
            name = f"{connection.get('name') or 'unnamed'} {connection['cid']}"
            found[name] = sorted(connection.get("subscriptions_list") or [])
        return found
