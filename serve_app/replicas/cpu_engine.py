"""vLLM's engine and its one worker in one process, where the model runs on a CPU. Imported by replicas."""

from typing import Any, Final

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager

_ARGUMENT: Final = "distributed_executor_backend"
_ONE_PROCESS: Final = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


class CpuEngine(VLLMEngine):  # type: ignore[misc]  # Ray ships no types
    """Starts the engine without a worker process of its own, unless the model is spread over several workers.

    vLLM talks to a worker through shared memory, which the worker watches in a busy loop: for a second after each step
    it takes a core from the others, and on a CPU those compute the model. vLLM refuses its own executor without workers
    there, because OpenMP must be told its threads before the process starts: here the process of the engine is told.
    Who gives `distributed_executor_backend` in engine_args gets vLLM's way.
    """

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        parallel = vllm_engine_config.parallel_config
        if not current_platform.is_cpu() or parallel.world_size > 1 or _ARGUMENT in self.llm_config.engine_kwargs:
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        parallel.distributed_executor_backend = _ONE_PROCESS
        with OMPProcessManager(vllm_engine_config).configure_omp_envs(rank=0, local_rank=0):
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
