"""What the shipped configurations become in Ray Serve LLM: built for real, not run. Needs vLLM, no GPU."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.app import build, build_from_config, build_worker_from_config
from serve_app.configured import AdapterConfig, AutoscalingConfig, ModelConfig, PlacementConfig
from serve_app.replicas.prefix_router import PREFIX_ROUTER
from serve_app.settings import Settings

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),  # importing vLLM
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("local_ray"),
]


def models_of(application: Any) -> dict[str, Any]:
    """The bound deployments of the models, by model id."""
    gateway = application._bound_deployment
    assert gateway.name == "gateway"
    _, handles = gateway.init_args
    return {model_id: handle._bound_deployment for model_id, handle in handles.items()}


@pytest.mark.parametrize("config", ["local", "simulated", "gpu-cluster"])
def test_every_configuration_builds_the_same_application(config: str) -> None:
    settings = Settings(config=config)
    models = models_of(build(settings))
    assert [m.name for m in models.values()] == [f"model-{m.model_id}" for m in settings.models]
    server = "SimulatedServer" if config == "simulated" else "VllmServer"
    assert {m.func_or_class.__name__ for m in models.values()} == {server}


def test_serve_deploys_a_configuration_by_its_name(request: pytest.FixtureRequest) -> None:
    assert list(models_of(build_from_config({"config": "gpu-cluster"}))) == ["llama-3.3-70b", "qwen2.5-7b"]
    assert request.config.cache
    folder = request.config.cache.mkdir("models")  # where the tests keep the model that comes as a package
    (local,) = models_of(build_from_config({"config": "local", "state_dir": str(folder.parent)})).values()
    assert Path(local.init_kwargs["llm_config"].model_loading_config.model_source) == folder / "smollm2-135m"
    assert (folder / "smollm2-135m" / "config.json").is_file()


def test_a_node_without_the_settings_file_says_which_it_wants_and_how_to_mend_it(tmp_path: Path) -> None:
    missing = tmp_path / "settings.json"
    for builder in (build_from_config, build_worker_from_config):
        with pytest.raises(
            FileNotFoundError, match=rf"settings_file {missing} does not exist on this node: .*`aifactory up` ran"
        ):
            builder({"settings_file": str(missing)})


def test_what_is_said_of_a_model_reaches_the_engine_and_serve() -> None:
    large = ModelConfig(
        model_id="large",
        source="org/large",
        accelerator="gpu",
        accelerator_type="H100",
        num_cpus=4,
        engine_args={"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "max_model_len": 1024, "seed": 7},
        env={"HF_HOME": "/models"},
        placement=PlacementConfig(strategy="SPREAD"),
        node_labels={"aifactory.group": "gpu"},
        autoscaling=AutoscalingConfig(min_replicas=0, max_replicas=3, target_ongoing_requests=50),
        max_ongoing_requests=70,
        max_queued_requests=80,
        adapters=AdapterConfig(directory="s3://bucket/adapters", max_adapters_per_replica=5),
    )
    small = ModelConfig(model_id="small", source="org/small", accelerator="gpu", replicas=2, routing="load")
    models = models_of(build(Settings(config="simulated", models=[large, small])))

    bound, config = models["large"], models["large"].init_kwargs["llm_config"]
    replica = bound._replica_config
    assert len(replica.placement_group_bundles) == 6
    assert all(bundle["GPU"] == 1 and "accelerator_type:H100" in bundle for bundle in replica.placement_group_bundles)
    assert replica.placement_group_bundles[0]["CPU"] == 4
    assert replica.placement_group_strategy == "SPREAD"
    assert replica.placement_group_bundle_label_selector == [{"aifactory.group": "gpu"}] * 6
    assert bound.ray_actor_options["runtime_env"]["env_vars"]["HF_HOME"] == "/models"
    assert (bound.max_ongoing_requests, bound.max_queued_requests) == (70, 80)
    scaled = bound._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (0, 3, 50)
    assert bound._deployment_config.request_router_config.request_router_class == PREFIX_ROUTER
    adapted = {"enable_lora": True, "max_loras": 5, "max_cpu_loras": 5, "max_lora_rank": 16}
    assert config.engine_kwargs == {**large.engine_args, **adapted}
    assert config.lora_config.dynamic_lora_loading_path == "s3://bucket/adapters"
    assert config.lora_config.max_num_adapters_per_replica == 5

    other = models["small"]
    assert other.num_replicas == 2
    assert other._deployment_config.request_router_config.request_router_class != PREFIX_ROUTER
    assert len(other._replica_config.placement_group_bundles) == 1
    assert other.init_kwargs["llm_config"].engine_kwargs == {}
    assert other.init_kwargs["adapters"] is None
