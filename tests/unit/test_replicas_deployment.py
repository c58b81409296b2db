"""How the settings of a model become options of its deployment."""

from typing import Any

import pytest
from ray.serve._private.constants import RAY_SERVE_HAPROXY_INGRESS_RETRY_ON, RAY_SERVE_HAPROXY_RETRY_ON

from serve_app.configured import AdapterConfig, ModelConfig
from serve_app.replicas import deployment
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
    env = deployment._environment(model(engine_args={"enforce_eager": True}, env={"VLLM_NO_USAGE_STATS": "0"}))
    assert env["RAYLLM_ENABLE_REQUEST_PROMPT_LOGS"] == "0"
    assert env["VLLM_NO_USAGE_STATS"] == "0"
    assert env["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in deployment._environment(model())


def test_nothing_below_us_retries_a_request() -> None:
    """Retries are DirectRun's (and a debater's): the proxy may only repeat what it could not send at all."""
    assert RAY_SERVE_HAPROXY_RETRY_ON == "conn-failure"
    assert RAY_SERVE_HAPROXY_INGRESS_RETRY_ON == "conn-failure"
    bound = deployment.build_deployment(model(engine="simulated"), source_path="")._bound_deployment
    assert not {"max_task_retries", "retry_exceptions"} & bound.ray_actor_options.keys()


def test_adapters_switch_lora_on() -> None:
    adapted = model(adapters=AdapterConfig(directory="/adapters", max_adapters_per_replica=3), engine_args={"max_lora_rank": 64})
    assert deployment._engine_args(adapted) == {"enable_lora": True, "max_loras": 3, "max_lora_rank": 64}
    assert deployment._lora(adapted) == {"dynamic_lora_loading_path": None, "max_num_adapters_per_replica": 3}
    in_bucket = model(adapters=AdapterConfig(directory="s3://b/a"))
    assert (deployment._lora(in_bucket) or {})["dynamic_lora_loading_path"] == "s3://b/a"
    assert deployment._lora(model()) is None


def test_a_replica_on_cpu_reserves_what_the_settings_say() -> None:
    assert deployment._placement(model(accelerator="cpu")) == {"placement_group_config": {"bundles": [{"CPU": 0}]}}
    assert deployment._placement(model(accelerator="gpu")) == {}
