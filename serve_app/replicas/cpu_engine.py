"""vLLM's engine and its one worker in one process, where the model runs on a CPU. Imported by replicas."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager

_ARGUMENT: Final = "distributed_executor_backend"
_ONE_PROCESS: Final = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


class CpuEngine(VLLMEngine):  # type: ignore[misc]  # Ray ships no types
    """Ray's engine; on a CPU without a worker process beside it, unless the model is spread over several workers.

    Who gives `distributed_executor_backend` in engine_args gets vLLM's way there: a worker process.
    """

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        alone = vllm_engine_config.parallel_config.world_size == 1 and _ARGUMENT not in self.llm_config.engine_kwargs
        if not (current_platform.is_cpu() and alone):
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        with in_one_process(vllm_engine_config):
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


@contextmanager
def in_one_process(config: Any) -> Iterator[None]:
    """An engine that is started in the block with this VllmConfig computes in its own process.

    vLLM talks to a worker through shared memory, which the worker watches in a busy loop: for a second after each step
    it takes a core from the others, and here those compute the model. vLLM itself refuses to do without a worker on a
    CPU, because OpenMP must know its threads before a process starts: the engine's process is told as a worker would be.
    """
    config.parallel_config.distributed_executor_backend = _ONE_PROCESS
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield
