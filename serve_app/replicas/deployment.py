"""Serve deployments of the configured models.

`build_deployment` imports vLLM for a vLLM model: call it in the process that deploys, and pass the gateway the bound
deployment, which reaches it as a handle.
"""

from pathlib import Path
from typing import Any, Final

from ray import serve
from ray.serve import Application

from serve_app.configured import AdapterConfig, ModelConfig
from serve_app.replicas.catalog import deployment_name, is_local
from serve_app.replicas.prefix_router import PREFIX_ROUTER

_BASE_ENV: Final = {
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",  # prompts do not belong in a log
    "VLLM_NO_USAGE_STATS": "1",
}
# Serve's line per call says nothing that ours, with its trace_id, does not, and costs a tenth of a millisecond.
OWN_LOG_ONLY: Final = {"enable_access_log": False}
_HEALTH: Final = {"health_check_period_s": 5, "health_check_timeout_s": 30}
_DEFAULT_LORA_RANK: Final = 16
_CPU_ADAPTERS: Final = "serve_app.replicas.cpu_adapters.CpuAdapters"


def build_deployment(model: ModelConfig, *, source_path: str) -> Application:
    """Bind the deployment `model-{model_id}`.

    `source_path` is where the engine finds the model: a local directory or a Hugging Face id; a simulated model needs
    none. For a vLLM model Ray must be connected. Raises ValueError when the engine arguments are wrong.
    """
    options: dict[str, Any] = {
        "name": deployment_name(model.model_id),
        "max_ongoing_requests": model.max_ongoing_requests,
        "max_queued_requests": model.max_queued_requests,
        "logging_config": OWN_LOG_ONLY,
        **_HEALTH,
        **_scale(model),
        **_routing(model),
    }
    if model.engine == "simulated":
        return _simulated(model, options)
    return _vllm(model, options, source_path)


def _scale(model: ModelConfig) -> dict[str, Any]:
    if model.replicas is not None:
        return {"num_replicas": model.replicas}
    return {"autoscaling_config": model.autoscaling.model_dump()}


def _routing(model: ModelConfig) -> dict[str, Any]:
    """Nothing for a model with one replica: Serve's own router keeps requests in the order in which they came."""
    most = model.replicas if model.replicas is not None else model.autoscaling.max_replicas
    if model.routing == "load" or most < 2:
        return {}
    return {"request_router_config": {"request_router_class": PREFIX_ROUTER}}


def _simulated(model: ModelConfig, options: dict[str, Any]) -> Application:
    from serve_app.replicas.simulated import SimulatedServer

    options["ray_actor_options"] = {"num_cpus": model.num_cpus, "runtime_env": {"env_vars": {**model.env}}}
    if model.node_labels:
        options["ray_actor_options"]["label_selector"] = model.node_labels
    return serve.deployment(SimulatedServer, **options).bind(model.model_id, model.simulated.model_dump())


def _vllm(model: ModelConfig, options: dict[str, Any], source_path: str) -> Application:
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from serve_app.replicas.vllm_server import VllmServer

    # Ray gives the model's own name a prefix; ours stands in options and wins.
    name = options.pop("name")
    if model.node_labels:
        options["placement_group_bundle_label_selector"] = [model.node_labels]  # one for all bundles
    config = LLMConfig(
        model_loading_config={"model_id": model.model_id, "model_source": source_path},
        accelerator_config={"kind": model.accelerator},
        accelerator_type=model.accelerator_type,
        engine_kwargs=engine_arguments(model),
        lora_config=_lora(model),
        runtime_env={"env_vars": engine_environment(model)},
        deployment_config={**options, "ray_actor_options": {"num_cpus": model.num_cpus}},
        experimental_configs={"stream_batching_interval_ms": 0},
        **_placement(model),
        **_local_start(source_path),
    )
    return build_llm_deployment(
        config,
        deployment_cls=VllmServer,
        bind_kwargs={"adapters": model.adapters.model_dump() if model.adapters else None},
        override_serve_options={"name": name},
    )


def engine_arguments(model: ModelConfig) -> dict[str, Any]:
    """What vLLM is told, some of it for its OpenAI layer. Raises ValueError when the arguments contradict each other."""
    arguments = dict(model.engine_args)
    if model.accelerator == "cpu":
        arguments["enable_chunked_prefill"] = False  # see ModelConfig: a prompt read in parts may kill the engine there
    if model.adapters is not None:
        arguments |= _adapter_arguments(model, model.adapters)
    return arguments


def _adapter_arguments(model: ModelConfig, adapters: AdapterConfig) -> dict[str, Any]:
    """What vLLM is told. It keeps as many as Serve believes a replica to hold, and lets the least used one go, as Serve does."""
    given = model.engine_args
    in_a_batch = int(given.get("max_loras") or adapters.max_adapters_per_replica)
    arguments: dict[str, Any] = {
        "enable_lora": True,
        "max_lora_rank": int(given.get("max_lora_rank") or _DEFAULT_LORA_RANK),
        "max_loras": in_a_batch,
        "max_cpu_loras": given.get("max_cpu_loras") or max(in_a_batch, adapters.max_adapters_per_replica),
    }
    if model.accelerator == "cpu":
        if given.get("worker_extension_cls"):
            raise ValueError(
                f"model {model.model_id!r} serves adapters on a CPU, which needs {_CPU_ADAPTERS} as worker_extension_cls: "
                "leave it out of engine_args"
            )
        arguments["worker_extension_cls"] = _CPU_ADAPTERS
    return arguments


def _lora(model: ModelConfig) -> dict[str, Any] | None:
    if model.adapters is None:
        return None
    bucket = None if is_local(model.adapters) else model.adapters.directory
    return {"dynamic_lora_loading_path": bucket, "max_num_adapters_per_replica": model.adapters.max_adapters_per_replica}


def engine_environment(model: ModelConfig) -> dict[str, str]:
    """The variables that a replica's process gets."""
    env = dict(_BASE_ENV)
    if model.engine_args.get("enforce_eager"):
        env["TORCHDYNAMO_DISABLE"] = "1"  # nothing is compiled then, and importing the compiler costs seconds
    return {**env, **model.env}


def _placement(model: ModelConfig) -> dict[str, Any]:
    if model.placement is not None:
        wanted = {"strategy": model.placement.strategy, "bundle_per_worker": model.placement.bundle}
        return {"placement_group_config": wanted}
    # Ray reserves one CPU per worker beside the replica's own; on CPU the workers live inside the replica's share.
    return {"placement_group_config": {"bundles": [{"CPU": 0}]}} if model.accelerator == "cpu" else {}


def _local_start(source_path: str) -> dict[str, Any]:
    if not Path(source_path).is_dir():
        return {}
    return {"callback_config": {"callback_class": "serve_app.replicas.vllm_server.SkipNodeInit"}}
