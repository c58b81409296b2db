"""Ray's autoscaler over a provider that rents raylets on this machine, with the node types of a cluster file.

Ray's own `AutoscalingCluster` will not do: its configuration is not in the wheel, and it ends every Ray on the machine.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from serve_app.local.ports import choose_port
from serve_app.local.processes import ProcessRecord, child_environment, end, find_all, spawn
from serve_app.local.ray_node import EmbeddedRay, choose_ray_ports
from serve_app.local.run_dir import make_private
from tests.e2e.stack_under_test import REPOSITORY, server_folder

_OBJECT_STORE_BYTES = 100 * 2**20
# A raylet needs no installing; Ray looks for the lists all the same.
_NO_COMMANDS = [
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
]


def _fake_config(cluster: dict[str, Any], gcs_address: str, *, faster: float) -> dict[str, Any]:
    """The cluster file for the fake provider: the same groups with their resources, labels and bounds; no machine to rent,
    and idle times divided by `faster`."""
    types = {}
    for name, group in cluster["available_node_types"].items():
        kept = {key: value for key, value in group.items() if key in ("labels", "min_workers", "max_workers")}
        if "idle_timeout_s" in group:
            kept["idle_timeout_s"] = group["idle_timeout_s"] / faster
        kept |= {"node_config": {}, "resources": {**group["resources"], "object_store_memory": _OBJECT_STORE_BYTES}}
        is_head = name == cluster["head_node_type"]
        types[FAKE_HEAD_NODE_TYPE if is_head else name] = kept | ({"max_workers": 0} if is_head else {})
    return {
        "cluster_name": cluster["cluster_name"],
        "max_workers": cluster["max_workers"],
        "upscaling_speed": cluster["upscaling_speed"],
        "idle_timeout_minutes": cluster["idle_timeout_minutes"] / faster,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": gcs_address,
            "launch_multiple": True,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": types,
        **{name: {} for name in ("auth", "file_mounts")},
        **{name: [] for name in _NO_COMMANDS},
    }


class AutoscaledHead(EmbeddedRay):
    """A head node with the autoscaler. Nothing is executed on it, as the cluster file has it."""

    def launch_autoscaled(self, config: Path, labels: dict[str, str]) -> ProcessRecord:
        make_private(self.run_dir)
        self._write_token()
        command = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--log-color=false", f"--port={self.ports.gcs}"]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--autoscaling-config={config}"]
        command += [f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}"]
        command += ["--num-cpus=0", "--num-gpus=0", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        command += [f"--ray-client-server-port={self.ports.client}", f"--dashboard-agent-listen-port={self.ports.agent}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.run_dir / 'ray'}"]
        variables = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",  # what `ray up` starts
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        }
        env = child_environment({**self.variables(), **variables}, mark=self.state_dir)
        env.pop("RAY_ADDRESS", None)
        return spawn(command, env=env, log=self.log, cwd=self.state_dir)


class FakeCloud:
    """A cluster, and a driver in a process of its own that wants things of it (tests/integration/wishes.py)."""

    def __init__(self, head: AutoscaledHead) -> None:
        # Ray reads its login from the environment when it is imported.
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.wishes", head.address],
            env=child_environment(head.variables(), mark=head.state_dir),
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def want(self, wish: str, count: int, **what: Any) -> None:
        """Ask for `count` of this; they wait until there is room."""
        self._ask({"wish": wish, "count": count, **what})

    def release(self) -> None:
        """Nothing is wanted any more."""
        self._ask({"wish": "release"})

    def placed(self) -> Counter[str]:
        """How many of the wishes were fulfilled, by the group of the node that has them."""
        return Counter(self._ask({"wish": "placed"}))

    def nodes(self) -> Counter[str]:
        """Live nodes by group."""
        return Counter(label["aifactory.group"] for label in self.labels())

    def labels(self) -> list[dict[str, str]]:
        """The labels of each live node."""
        labels: list[dict[str, str]] = self._ask({"wish": "nodes"})
        return labels

    def close(self) -> None:
        self._driver.kill()
        self._driver.wait(10)
        for pipe in (self._driver.stdin, self._driver.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, question: dict[str, Any]) -> Any:
        stdin, stdout = self._driver.stdin, self._driver.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{json.dumps(question)}\n")
        stdin.flush()
        while line := stdout.readline():
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError("the driver has ended; its stderr says why")


@contextmanager
def fake_cloud(cluster: dict[str, Any], *, faster: float) -> Iterator[FakeCloud]:
    """The cluster file's groups on this machine. At the end every process is ended, by its pid."""
    with server_folder() as folder:
        taken: set[int] = set()
        ports = choose_ray_ports(0, 0, lambda port, _: choose_port(port, taken), taken)
        head = AutoscaledHead(folder, folder / "h", "127.0.0.1", ports, 1, folder / "head.log")
        config = folder / "fake.yaml"
        config.write_text(yaml.safe_dump(_fake_config(cluster, head.address, faster=faster)))
        leader = head.launch_autoscaled(config, cluster["available_node_types"][cluster["head_node_type"]]["labels"])
        try:
            head.wait(leader)
            cloud = FakeCloud(head)
            try:
                yield cloud
            finally:
                cloud.close()
        finally:
            end([leader], grace_s=15, first_signal=signal.SIGTERM)
            for _ in range(3):
                end(find_all(folder, leaders=[leader], folders=[head.run_dir / "ray"]), grace_s=5, first_signal=signal.SIGTERM)
            left = find_all(folder, leaders=[leader], folders=[head.run_dir / "ray"])
            assert not left, f"processes {[known.pid for known in left]} of the fake cloud did not end"
