"""Ray's autoscaler grows and shrinks the groups of deploy/cluster-aws.yaml, with raylets for machines."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from serve_app.settings import CONFIG_DIR, Settings
from tests.house.tree import ROOT
from tests.integration.fake_cloud import FakeCloud, fake_cloud

pytestmark = pytest.mark.timeout(900)

CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "cluster-aws.yaml").read_text())
CPU, GPU = CLUSTER["available_node_types"]["cpu_worker"], CLUSTER["available_node_types"]["gpu_worker"]
MODEL = Settings(config=str(CONFIG_DIR / "gpu-cluster.yaml")).models[0]
REST = Counter({"head": 1, "cpu": CPU["min_workers"]} | ({"gpu": GPU["min_workers"]} if GPU["min_workers"] else {}))
FASTER = 60.0  # idle times: minutes become seconds
WAIT_S = 240.0  # a raylet takes seconds to start; on a busy machine many


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with fake_cloud(CLUSTER, faster=FASTER) as standing:
        yield standing


def replicas_per_node() -> int:
    return int(GPU["resources"]["GPU"]) // int(MODEL.engine_args["tensor_parallel_size"])


def want_replicas(cloud: FakeCloud, count: int) -> None:
    """What Ray Serve LLM reserves for so many replicas of the model."""
    gpus = int(MODEL.engine_args["tensor_parallel_size"])
    bundles: list[dict[str, float]] = [{"GPU": 1, f"accelerator_type:{MODEL.accelerator_type}": 0.001} for _ in range(gpus)]
    bundles[0]["CPU"] = MODEL.num_cpus
    strategy = MODEL.placement.strategy if MODEL.placement else "PACK"
    cloud.want("groups", count, bundles=bundles, strategy=strategy, labels=MODEL.node_labels)


def test_at_rest_each_group_has_its_least(cloud: FakeCloud) -> None:
    until(lambda: cloud.nodes() == REST, cloud)
    labels = [label for label in cloud.labels() if label["aifactory.group"] == "cpu"]
    assert all(label.items() >= CPU["labels"].items() for label in labels)


def test_replicas_get_gpu_nodes_up_to_the_bound_and_idle_nodes_go(cloud: FakeCloud) -> None:
    want_replicas(cloud, replicas_per_node() + 1)
    until(lambda: cloud.placed() == {"gpu": replicas_per_node() + 1}, cloud)
    assert cloud.nodes() == REST + Counter(gpu=2)
    assert any(label.items() >= GPU["labels"].items() for label in cloud.labels())
    most = replicas_per_node() * GPU["max_workers"]
    want_replicas(cloud, most)
    until(lambda: cloud.placed() == {"gpu": most}, cloud)
    assert cloud.nodes() == REST + Counter(gpu=GPU["max_workers"]), "the others must wait"
    cloud.release()
    until(lambda: cloud.nodes() == REST, cloud)


def test_gateways_and_workers_get_cpu_nodes_and_no_gpu_is_rented_for_them(cloud: FakeCloud) -> None:
    until(lambda: cloud.nodes() == REST, cloud)
    each = {"num_cpus": CPU["resources"]["CPU"], "label_selector": CPU["labels"]}  # as much as a node of them holds
    cloud.want("actors", CPU["max_workers"] + 1, options=each)
    until(lambda: cloud.placed() == {"cpu": CPU["max_workers"]}, cloud)
    assert cloud.nodes() == REST | Counter(cpu=CPU["max_workers"])
    cloud.release()
    until(lambda: cloud.nodes() == REST, cloud)


def until(condition: Callable[[], bool], cloud: FakeCloud) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s; nodes {cloud.nodes()}, placed {cloud.placed()}"
        time.sleep(0.5)
