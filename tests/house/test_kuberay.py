"""deploy/kuberay: what KubeRay, Ray's autoscaler on Kubernetes, Serve and our own settings make of it."""

import copy
import json
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import APP_NAME, WORKER_APP_NAME, Settings, config_path
from tests.house.rayservice_fields import strays
from tests.house.test_cluster import AWS, load, prepared_switches
from tests.house.tree import ROOT

SERVICE = ROOT / "deploy" / "kuberay" / "rayservice.yaml"


@pytest.fixture
def service() -> dict[str, Any]:
    return load(SERVICE)


def pods(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def containers(service: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for pod in pods(service) for one in (*pod.get("initContainers", ()), *pod["containers"])]


def special(resources: dict[str, float]) -> dict[str, float]:
    """What makes a node more than so many CPUs."""
    return {kind: amount for kind, amount in resources.items() if amount and kind not in ("CPU", "memory")}


def test_kuberay_knows_every_field(service: dict[str, Any]) -> None:
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert strays(service["spec"]) == []


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda spec: spec.update(serveConfig="x"), "spec.serveConfig is unknown"),
        (lambda spec: spec.pop("rayClusterConfig"), "spec.rayClusterConfig is missing"),
        (lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].update(replicas="2"), "replicas is '2', not integer"),
        (lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].pop("minReplicas"), "[0].minReplicas is missing"),
        (lambda spec: spec["rayClusterConfig"]["authOptions"].update(mode="yes"), "mode is 'yes'"),
    ],
)
def test_a_wrong_field_is_seen(service: dict[str, Any], break_it: Any, told: str) -> None:
    broken = copy.deepcopy(service["spec"])  # anchors share their mappings
    break_it(broken)
    assert told in " ".join(strays(broken))


def test_the_autoscaler_reads_the_groups_of_the_cloud_out_of_it(service: dict[str, Any]) -> None:
    """Ray's own reading of the resource; bounds, labels, idle times and GPUs are those of deploy/cluster-aws.yaml."""
    cluster = {"metadata": {"name": "x", "namespace": "y"}, "spec": service["spec"]["rayClusterConfig"]}
    read = _derive_autoscaling_config_from_ray_cr(cluster)
    aws = load(AWS)
    groups = {name.replace("-", "_"): group for name, group in read["available_node_types"].items()}
    head = groups.pop(read["head_node_type"].replace("-", "_"))
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert head["labels"] == aws["available_node_types"]["head"]["labels"]
    assert groups.keys() == aws["available_node_types"].keys() - {"head"}
    for name, group in groups.items():
        like = aws["available_node_types"][name]
        for field in ("min_workers", "max_workers", "labels", "idle_timeout_s"):
            assert group[field] == like[field], f"{name}: {field}"
        assert special(group["resources"]) == special(like["resources"]), name
        assert 16 <= group["resources"]["CPU"] <= like["resources"]["CPU"]
    assert read["idle_timeout_minutes"] == aws["idle_timeout_minutes"]
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def test_serve_takes_the_configuration_and_it_builds_our_applications(service: dict[str, Any]) -> None:
    served = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert served.http_options.port == Settings.model_fields["port"].default
    assert served.http_options.host == "0.0.0.0", "HAProxy of one pod must reach the gateways of the others"
    assert [app.name for app in served.applications] == [APP_NAME, WORKER_APP_NAME]
    assert [app.route_prefix for app in served.applications] == ["/", None]
    for app, head in zip(served.applications, ("gateway", "debate-worker"), strict=True):
        assert config_path(app.args["config"]).is_file()
        module, _, name = app.import_path.partition(":")
        # Engines are not built here: that needs a GPU build of vLLM. The builders are the same for every configuration.
        built = call_user_app_builder_with_args_if_necessary(getattr(import_module(module), name), {"config": "simulated"})
        assert built._bound_deployment.name == head


def test_secrets_come_from_secrets_and_reach_every_container(service: dict[str, Any]) -> None:
    for container in containers(service):
        assert {"secretRef": {"name": "aifactory"}} in container["envFrom"], container["name"]
        written = {one["name"]: one.get("value", "") for one in container.get("env", [])}
        assert {name for name in written if name.startswith("AIFACTORY_")} <= {"AIFACTORY_STATE_DIR", "AIFACTORY_NODE_LABELS"}
    settings = {f"AIFACTORY_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"AIFACTORY_[A-Z_]+\b", SERVICE.read_text())) <= settings
    auth = service["spec"]["rayClusterConfig"]["authOptions"]
    assert auth == {"mode": "token", "secretName": "aifactory-ray"}


def test_pods_have_the_switches_of_prepared_nodes(service: dict[str, Any]) -> None:
    wanted = prepared_switches()
    for pod in pods(service):
        (container,) = pod["containers"]
        env = {one["name"]: one["value"] for one in container["env"]}
        for name, value in wanted.items():
            # KubeRay sets the token login itself.
            if name != "RAY_AUTH_MODE":
                assert env[name] == value.replace("$PWD", "/opt/aifactory"), name


def test_gateways_and_workers_are_sent_to_the_cpu_group(service: dict[str, Any]) -> None:
    """Each pod says it: Serve builds the applications on any of them."""
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (labels,) = (group["labels"] for group in groups if group["groupName"] == "cpu-worker")
    for pod in pods(service):
        env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        assert json.loads(env["AIFACTORY_NODE_LABELS"]) == labels


def test_a_pod_is_ready_when_it_can_serve(service: dict[str, Any]) -> None:
    for pod in list(pods(service))[1:]:
        (container,) = pod["containers"]
        (port,) = [one["containerPort"] for one in container["ports"] if one["name"] == "serve"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port}
        grace = Settings.model_fields["worker_grace_s"].default
        assert pod["terminationGracePeriodSeconds"] >= grace + 40, "workers would be killed while they hand back"


def test_volumes_that_are_mounted_are_there(service: dict[str, Any]) -> None:
    for pod in pods(service):
        there = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= there
