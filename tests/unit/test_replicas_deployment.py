"""How the settings of a model become options of its deployment."""

from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.constants import RAY_SERVE_HAPROXY_INGRESS_RETRY_ON, RAY_SERVE_HAPROXY_RETRY_ON

from serve_app.configured import AdapterConfig, ModelConfig, PlacementConfig
from serve_app.replicas import deployment
from serve_app.replicas.prefix_router import PREFIX_ROUTER
from serve_app.settings import Settings


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"model_id": "m", "source": "x", **fields})


@pytest.mark.parametrize("name", ["local", "simulated", "gpu-cluster"])
def test_shipped_configurations_are_valid(name: str) -> None:
    assert Settings(config=name).models


def test_a_simulated_model_is_bound_under_its_name() -> None:
    sim = model(engine="simulated", replicas=2, max_ongoing_requests=3, max_queued_requests=4, num_cpus=0.1)
    bound = deployment.build_deployment(sim, source_path="")._bound_deployment
    assert bound.name == "model-m"
    assert (bound.num_replicas, bound.max_ongoing_requests, bound.max_queued_requests) == (2, 3, 4)
    assert bound.ray_actor_options["num_cpus"] == 0.1


def test_replicas_are_fixed_or_autoscaled_never_both() -> None:
    assert deployment._scale(model(replicas=2)) == {"num_replicas": 2}
    scaled = deployment._scale(model(autoscaling={"min_replicas": 0, "max_replicas": 5, "target_ongoing_requests": 7}))
    assert scaled == {"autoscaling_config": {"min_replicas": 0, "max_replicas": 5, "target_ongoing_requests": 7}}


def test_prompts_are_not_logged_and_the_operator_has_the_last_word() -> None:
    env = deployment.engine_environment(model(engine_args={"enforce_eager": True}, env={"VLLM_NO_USAGE_STATS": "0"}))
    assert env["RAYLLM_ENABLE_REQUEST_PROMPT_LOGS"] == "0"
    assert env["VLLM_NO_USAGE_STATS"] == "0"
    assert env["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in deployment.engine_environment(model())


def test_nothing_below_us_retries_a_request() -> None:
    """Retries are DirectRun's (and a debater's): the proxy may only repeat what it could not send at all."""
    assert RAY_SERVE_HAPROXY_RETRY_ON == "conn-failure"
    assert RAY_SERVE_HAPROXY_INGRESS_RETRY_ON == "conn-failure"
    bound = deployment.build_deployment(model(engine="simulated"), source_path="")._bound_deployment
    assert not {"max_task_retries", "retry_exceptions"} & bound.ray_actor_options.keys()


def test_adapters_switch_lora_on() -> None:
    where = AdapterConfig(directory="/adapters", max_adapters_per_replica=3)
    adapted = model(accelerator="gpu", adapters=where, engine_args={"max_lora_rank": 64})
    wanted = {"enable_lora": True, "max_loras": 3, "max_cpu_loras": 3, "max_lora_rank": 64}
    assert deployment.engine_arguments(adapted) == wanted
    assert deployment._lora(adapted) == {"dynamic_lora_loading_path": None, "max_num_adapters_per_replica": 3}
    in_bucket = model(adapters=AdapterConfig(directory="s3://b/a"))
    assert (deployment._lora(in_bucket) or {})["dynamic_lora_loading_path"] == "s3://b/a"
    assert deployment._lora(model()) is None


def test_fewer_adapters_in_a_batch_than_are_held() -> None:
    where = AdapterConfig(directory="/adapters", max_adapters_per_replica=8)
    arguments = deployment.engine_arguments(model(accelerator="gpu", adapters=where, engine_args={"max_loras": 2}))
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (2, 8)
    arguments = deployment.engine_arguments(model(accelerator="gpu", adapters=where, engine_args={"max_loras": 9}))
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (9, 9)


def test_on_a_cpu_vllm_is_mended_for_adapters() -> None:
    """Its operations give the base model's requests the weights of the adapter in the last slot."""
    where = AdapterConfig(directory="/adapters")
    assert deployment.engine_arguments(model(adapters=where))["worker_extension_cls"] == deployment._CPU_ADAPTERS
    assert "worker_extension_cls" not in deployment.engine_arguments(model())
    assert "worker_extension_cls" not in deployment.engine_arguments(model(accelerator="gpu", adapters=where))
    with pytest.raises(ValueError, match="leave it out of engine_args"):
        deployment.engine_arguments(model(adapters=where, engine_args={"worker_extension_cls": "mine"}))


def test_a_relative_directory_means_the_same_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert AdapterConfig(directory="adapters").directory == str(tmp_path / "adapters")
    assert AdapterConfig(directory="pyarrow-s3://b/a").directory == "pyarrow-s3://b/a"
    with pytest.raises(ValueError, match="use a local path, or one of s3://"):
        AdapterConfig(directory="https://example.com/adapters")


def test_only_several_replicas_are_routed_by_prefix() -> None:
    by_prefix = {"request_router_config": {"request_router_class": "serve_app.replicas.prefix_router.PrefixRouter"}}
    assert deployment._routing(model(replicas=2)) == by_prefix
    assert deployment._routing(model(autoscaling={"max_replicas": 2})) == by_prefix
    assert deployment._routing(model(replicas=1)) == {}
    assert deployment._routing(model()) == {}
    assert deployment._routing(model(replicas=2, routing="load")) == {}
    sim = deployment.build_deployment(model(engine="simulated", replicas=2), source_path="")._bound_deployment
    assert sim._deployment_config.request_router_config.request_router_class == PREFIX_ROUTER


def test_nodes_and_workers_of_a_replica_can_be_chosen() -> None:
    spread = PlacementConfig(strategy="SPREAD", bundle={"GPU": 1, "CPU": 2})
    chosen = model(accelerator="gpu", placement=spread)
    wanted = {"strategy": "SPREAD", "bundle_per_worker": {"GPU": 1, "CPU": 2}}
    assert deployment._placement(chosen) == {"placement_group_config": wanted}
    sim = model(engine="simulated", node_labels={"group": "a"})
    assert deployment.build_deployment(sim, source_path="")._bound_deployment.ray_actor_options["label_selector"] == {
        "group": "a"
    }


def test_a_replica_on_cpu_reserves_what_the_settings_say() -> None:
    assert deployment._placement(model(accelerator="cpu")) == {"placement_group_config": {"bundles": [{"CPU": 0}]}}
    assert deployment._placement(model(accelerator="gpu")) == {}


@pytest.mark.parametrize("given", [{}, {"enable_chunked_prefill": False}])
def test_on_a_cpu_no_prompt_is_read_in_parts(given: dict[str, Any]) -> None:
    """vLLM's engine dies there for everybody when a prompt with a seed is."""
    assert deployment.engine_arguments(model(accelerator="cpu", engine_args=given)) == {"enable_chunked_prefill": False}
    assert deployment.engine_arguments(model(accelerator="gpu", engine_args=given)) == given
    local = Settings(config="local").models[0]
    assert deployment.engine_arguments(local)["enable_chunked_prefill"] is False


READS_IN_PARTS = [
    ({"enable_chunked_prefill": True}, "leave out engine_args.enable_chunked_prefill"),
    ({"long_prefill_token_threshold": 256}, "leave out engine_args.long_prefill_token_threshold"),
    (
        {"max_num_batched_tokens": 512, "max_model_len": 2048},
        r"max_num_batched_tokens \(512\) must be at least max_model_len \(2048\)",
    ),
]


@pytest.mark.parametrize(("arguments", "told"), READS_IN_PARTS)
def test_a_cpu_model_that_would_read_prompts_in_parts_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=rf"model 'm' runs on a CPU.*{told}"):
        model(engine_args=arguments)
    assert model(accelerator="gpu", engine_args=arguments).engine_args == arguments
    assert model(engine="simulated", engine_args=arguments).engine_args == arguments


def test_a_cpu_model_whose_step_holds_its_longest_prompt_is_fine() -> None:
    fits: dict[str, Any] = {"max_num_batched_tokens": 2048, "max_model_len": 2048, "enable_prefix_caching": True}
    assert deployment.engine_arguments(model(engine_args=fits)) == {**fits, "enable_chunked_prefill": False}
    assert model(engine_args={"max_num_batched_tokens": 512, "max_model_len": "auto"})
