"""A Ray cluster of two nodes on this machine, and the death of one of them.

Each node has a loopback address, ports and HAProxy files of its own, as two machines would.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from serve_app.local.ports import choose_port
from serve_app.local.processes import ProcessRecord, child_environment, end, find_all, is_alive, record, spawn
from serve_app.local.ray_node import EmbeddedRay, RayPorts, choose_ray_ports
from serve_app.local.run_dir import make_private
from tests.e2e.stack_under_test import SHORT_DRAIN, server_folder

HEAD_IP, FURTHER_IP = "127.0.0.1", "127.0.0.2"
_CPUS = 8  # logical ones, of each node: either can carry everything


class _Node(EmbeddedRay):
    def variables(self) -> dict[str, str]:
        return super().variables() | SHORT_DRAIN


class FurtherNode(_Node):
    """A node that joins a head; `ports.gcs` is the head's."""

    def join(self, ip: str, mark: Path) -> ProcessRecord:
        make_private(self.run_dir)
        (self.run_dir / "ha").mkdir(mode=0o700)
        self._write_haproxy()
        command = ["ray", "start", "--block", "--disable-usage-stats", "--log-color=false"]
        command += [f"--address={self.address}", f"--node-ip-address={ip}", f"--num-cpus={self.num_cpus}"]
        command += [f"--dashboard-agent-listen-port={self.ports.agent}", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--object-store-memory={128 * 2**20}"]
        env = child_environment(self.variables(), mark=mark)
        env.pop("RAY_ADDRESS", None)
        return spawn(command, env=env, log=self.log, cwd=self.state_dir)


class RayNodes:
    """The head and one further node. `folder`: an absolute, short path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        taken: set[int] = set()
        ports = _ports(taken)
        self.head = _Node(folder, folder / "h", HEAD_IP, ports, _CPUS, folder / "head.log")
        ports = _ports(taken).model_copy(update={"gcs": ports.gcs})
        self._further = FurtherNode(folder, folder / "f", FURTHER_IP, ports, _CPUS, folder / "further.log")
        self._leaders: dict[str, ProcessRecord] = {}

    @property
    def address(self) -> str:
        return self.head.address

    def start(self) -> None:
        """Both nodes, until they have joined."""
        self._leaders[HEAD_IP] = self.head.launch({})
        self.head.wait(self._leaders[HEAD_IP])
        self._leaders[FURTHER_IP] = self._further.join(FURTHER_IP, self._folder)
        self._further.wait(self._leaders[FURTHER_IP])

    def pids(self, ip: str) -> set[int]:
        """Every process of a node: its raylet, its agents, its HAProxy, and the actors on it."""
        leader = self._leaders[ip]
        with suppress(psutil.NoSuchProcess):  # it may end at any moment
            if is_alive(leader):
                return {leader.pid, *(child.pid for child in psutil.Process(leader.pid).children(recursive=True))}
        return set()

    def kill(self, ip: str) -> set[int]:
        """The machine is gone: everything on it is stopped, then killed. Returns the pids."""
        gone: set[int] = set()
        try:
            # Stopped first, so that none of them sees another one go; again, for those that were just being started.
            while fresh := self.pids(ip) - gone:
                gone |= fresh
                _signal(fresh, signal.SIGSTOP)
        finally:
            _signal(gone, signal.SIGKILL)  # a stopped one would answer no other signal
        return gone

    def stop(self) -> None:
        """End whatever still runs. Raises RuntimeError if something survives."""
        leaders = list(self._leaders.values())
        end(leaders[::-1], grace_s=15, first_signal=signal.SIGTERM)
        for _ in range(3):
            left = find_all(self._folder, leaders=leaders, folders=[self.head.run_dir / "ray"])
            if not left:
                return
            end(left, grace_s=5, first_signal=signal.SIGTERM)
        raise RuntimeError(f"processes {[known.pid for known in left]} of the two Ray nodes did not end")


@contextmanager
def two_ray_nodes() -> Iterator[RayNodes]:
    """A head, and a node that has joined it. At the end every process of both is ended, by its pid."""
    with server_folder() as folder:
        nodes = RayNodes(folder)
        try:
            nodes.start()
            yield nodes
        finally:
            nodes.stop()


def _ports(taken: set[int]) -> RayPorts:
    return choose_ray_ports(0, 0, lambda port, _: choose_port(port, taken), taken)


def _signal(pids: set[int], number: int) -> None:
    for known in map(record, pids):
        if is_alive(known):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(known.pid).send_signal(number)
