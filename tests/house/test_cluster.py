"""cluster.yaml and its like: accepted by Ray's own check of `ray up`, and in step with the configuration that runs on them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from dagster_project import worker
from serve_app import app
from serve_app.local.ray_node import EmbeddedRay, RayPorts
from serve_app.settings import CONFIG_DIR, Settings
from tests.house.tree import ROOT

OWN = ROOT / "cluster.yaml"
AWS = ROOT / "deploy" / "cluster-aws.yaml"
FILES = [OWN, AWS]
GATEWAY_CPUS = WORKER_CPUS = 0.2


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def prepared_switches() -> dict[str, str]:
    """What scripts/prepare-node puts into the environment of a node's Ray."""
    text = (ROOT / "scripts" / "prepare-node").read_text()
    return dict(re.findall(r'^export (RAY_\w+)="?([^"\n]*)"?$', text, re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_ray_accepts_it(path: Path) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(load(path), schema)
    validate_config(prepare_config(load(path)))  # what `ray up` does before it starts anything


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_a_wrong_file_is_refused(path: Path) -> None:
    wrong = load(path) | {"workers": 3}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_own_machines_all_stay_in_the_cluster() -> None:
    """Ray's `local` provider takes no groups: it must keep every machine of the list."""
    machines = len(load(OWN)["provider"]["worker_ips"])
    (kind,) = prepare_config(load(OWN))["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (machines, machines)
    with pytest.raises(Exception, match="available_node_types"):
        prepare_config(load(OWN) | {"available_node_types": load(AWS)["available_node_types"]})


@pytest.mark.parametrize(("nvidia", "group"), [("echo 'GPU 0: NVIDIA H100'", "gpu"), ("exit 9", "cpu"), (None, "cpu")])
def test_own_machines_join_the_group_of_what_they_have(tmp_path: Path, nvidia: str | None, group: str) -> None:
    said = run_as_node(tmp_path, load(OWN)["worker_start_ray_commands"][-1], nvidia)
    assert f"--labels=aifactory.group={group} " in said
    assert "--address=10.0.0.10:6379 " in said


def test_groups_have_bounds_labels_and_idle_times() -> None:
    cluster = load(AWS)
    groups = cluster["available_node_types"]
    assert [groups[name]["labels"]["aifactory.group"] for name in ("head", "cpu_worker", "gpu_worker")] == ["head", "cpu", "gpu"]
    assert groups[cluster["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}, "the head is for what cannot go elsewhere"
    for name in ("cpu_worker", "gpu_worker"):
        assert 0 <= groups[name]["min_workers"] <= groups[name]["max_workers"] <= cluster["max_workers"]
        assert groups[name]["idle_timeout_s"] > 0
    assert sum(group.get("max_workers", 0) for group in groups.values()) <= cluster["max_workers"]


def test_gpu_group_holds_the_models_of_the_gpu_configuration() -> None:
    group = load(AWS)["available_node_types"]["gpu_worker"]
    gpus, cpus = group["resources"]["GPU"], group["resources"]["CPU"]
    wanted = 0
    for model in Settings(config=str(CONFIG_DIR / "gpu-cluster.yaml")).models:
        per_replica = model.engine_args.get("tensor_parallel_size", 1)
        assert per_replica <= gpus, f"a replica of {model.model_id} does not fit on one node"
        assert model.num_cpus <= cpus
        if model.accelerator_type:
            assert f"accelerator_type:{model.accelerator_type}" in group["resources"]
        assert model.node_labels.items() <= group["labels"].items()
        wanted += per_replica * model.autoscaling.max_replicas
    assert wanted <= gpus * group["max_workers"], "the replicas' upper bounds do not fit into the group's"


def test_cpu_group_holds_gateways_and_workers_and_one_of_it_may_die() -> None:
    settings = Settings(config=str(CONFIG_DIR / "gpu-cluster.yaml"))
    group = load(AWS)["available_node_types"]["cpu_worker"]
    wanted = settings.gateway_replicas * GATEWAY_CPUS + settings.workers_max * WORKER_CPUS
    assert wanted <= group["resources"]["CPU"] * (group["min_workers"] - 1)
    assert min(group["min_workers"], settings.gateway_replicas, settings.workers_min) >= 2
    assert len(load(OWN)["provider"]["worker_ips"]) >= 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_commands_agree_with_the_settings_and_with_each_other(path: Path) -> None:
    cluster = load(path)
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    ports = {port for start in starts for port in re.findall(r"(?:--port=|\$RAY_HEAD_IP:)(\d+)", start)}
    assert len(ports) == 1, "head and workers speak of different ports"
    told = OWN.read_text()
    assert f"AIFACTORY_RAY_ADDRESS=127.0.0.1:{ports.pop()}" in told
    assert f"-p {Settings.model_fields['port'].default} " in told, "the forwarded port is not the API's"
    assert "--config gpu-cluster" in told
    for command in cluster["setup_commands"]:
        if script := re.search(r"~/aifactory/(\S+)", command):
            assert (ROOT / script.group(1)).stat().st_mode & 0o100
    # Every node has the token, and everything that is started knows how to log in.
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert all(start.startswith(". ~/aifactory/.node-env && ") for start in starts)


def test_gateways_and_workers_can_be_kept_to_the_cpu_group() -> None:
    labels = load(AWS)["available_node_types"]["cpu_worker"]["labels"]
    assert f"AIFACTORY_NODE_LABELS='{json.dumps(labels)}'" in OWN.read_text()
    settings = Settings(config="simulated", node_labels=labels)
    for build, cpus in ((app.build, GATEWAY_CPUS), (worker.build, WORKER_CPUS)):
        options = build(settings)._bound_deployment.ray_actor_options
        assert (options["label_selector"], options["num_cpus"]) == (labels, cpus)
    anywhere = app.build(Settings(config="simulated"))._bound_deployment.ray_actor_options
    assert not anywhere.get("label_selector")


def test_both_files_treat_nodes_alike() -> None:
    own, aws = load(OWN), load(AWS)
    for field in ("cluster_name", "file_mounts", "rsync_exclude", "setup_commands"):
        assert own[field] == aws[field], field


def test_nodes_get_the_ray_switches_of_the_embedded_node(tmp_path: Path) -> None:
    ports = RayPorts(gcs=1, dashboard=2, client=3, agent=4, haproxy_metrics=5, haproxy_stats=6, fallback_proxy=7, fallback_grpc=8)
    embedded = EmbeddedRay(tmp_path, tmp_path, "127.0.0.1", ports, 1, tmp_path / "log").variables()
    written = prepared_switches()
    for name in ("RAY_AUTH_MODE", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_USAGE_STATS_ENABLED"):
        assert written[name] == embedded[name]
    assert "RAY_SERVE_HAPROXY_BINARY_PATH" in written
    # Ray looks in ~/.ray/auth_token by itself; with the path set, `ray get-auth-token --generate` refuses to make it.
    assert "RAY_AUTH_TOKEN_PATH" not in written


def run_as_node(home: Path, command: str, nvidia: str | None) -> str:
    """Run a start command on a machine whose `ray` only says how it was called."""
    programs = home / "bin"
    programs.mkdir()
    for name, line in {"ray": 'echo "ray $* "', "nvidia-smi": nvidia}.items():
        if line is not None:
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o700)
    (home / "aifactory").mkdir()
    (home / "aifactory" / ".node-env").write_text(f'export PATH="{programs}:/usr/bin:/bin"\nulimit() {{ :; }}\n')
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.10"}
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout
