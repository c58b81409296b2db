"""cluster.yaml: accepted by Ray's own check of `ray up`, and in step with the configuration that runs on it."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from serve_app.local.ray_node import EmbeddedRay, RayPorts
from serve_app.settings import CONFIG_DIR, Settings
from tests.house.tree import ROOT

CLUSTER = ROOT / "cluster.yaml"
FILES = [CLUSTER, ROOT / "deploy" / "cluster-on-premise.yaml"]


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_ray_accepts_it(path: Path) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(load(path), schema)
    validate_config(prepare_config(load(path)))  # what `ray up` does before it starts anything


def test_a_wrong_file_is_refused() -> None:
    wrong = load(CLUSTER) | {"workers": 3}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_gpu_group_holds_the_models_of_the_gpu_configuration() -> None:
    cluster = load(CLUSTER)
    group = cluster["available_node_types"]["gpu_worker"]
    gpus, cpus = group["resources"]["GPU"], group["resources"]["CPU"]
    wanted = 0
    for model in Settings(config=str(CONFIG_DIR / "gpu-cluster.yaml")).models:
        per_replica = model.engine_args.get("tensor_parallel_size", 1)
        assert per_replica <= gpus, f"a replica of {model.model_id} does not fit on one node"
        assert model.num_cpus <= cpus
        if model.accelerator_type:
            assert f"accelerator_type:{model.accelerator_type}" in group["resources"]
        wanted += per_replica * model.autoscaling.max_replicas
    assert wanted <= gpus * group["max_workers"], "the replicas' upper bounds do not fit into the group's"
    assert group["max_workers"] <= cluster["max_workers"]
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"]["GPU"] == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_commands_agree_with_the_settings_and_with_each_other(path: Path) -> None:
    cluster, text = load(path), path.read_text()
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    ports = {port for start in starts for port in re.findall(r"(?:--port=|\$RAY_HEAD_IP:)(\d+)", start)}
    assert len(ports) == 1, "head and workers speak of different ports"
    if path == CLUSTER:
        assert f"AIFACTORY_RAY_ADDRESS=127.0.0.1:{ports.pop()}" in text
        assert f"-p {Settings.model_fields['port'].default} " in text, "the forwarded port is not the API's"
        assert "--config gpu-cluster" in text
    for command in cluster["setup_commands"]:
        if script := re.search(r"~/aifactory/(\S+)", command):
            assert (ROOT / script.group(1)).stat().st_mode & 0o100
    # Every node has the token, and everything that is started knows how to log in.
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert all(start.startswith(". ~/aifactory/.node-env && ") for start in starts)


def test_nodes_get_the_ray_switches_of_the_embedded_node(tmp_path: Path) -> None:
    ports = RayPorts(gcs=1, dashboard=2, client=3, agent=4, haproxy_metrics=5, haproxy_stats=6, fallback_proxy=7, fallback_grpc=8)
    embedded = EmbeddedRay(tmp_path, tmp_path, "127.0.0.1", ports, 1, tmp_path / "log").variables()
    written = dict(re.findall(r'^export (RAY_\w+)="?([^"\n]*)"?$', (ROOT / "scripts" / "prepare-node").read_text(), re.MULTILINE))
    for name in ("RAY_AUTH_MODE", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_USAGE_STATS_ENABLED"):
        assert written[name] == embedded[name]
    assert "RAY_SERVE_HAPROXY_BINARY_PATH" in written
    # Ray looks in ~/.ray/auth_token by itself; with the path set, `ray get-auth-token --generate` refuses to make it.
    assert "RAY_AUTH_TOKEN_PATH" not in written
