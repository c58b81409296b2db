"""Mends vLLM's LoRA operations on a CPU. Imported by vLLM's workers (engine argument worker_extension_cls)."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

_OPERATIONS: Final = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


class CpuAdapters:
    """vLLM mixes this into its workers; that it is imported there is all that matters.

    A row of a batch without an adapter has slot -1. vLLM 0.29's operations for CPUs take that for the last slot, so
    that an answer of the base model is another adapter's when both are asked for at once (vllm pull request 48421).
    """


def _sparing_base_rows(operation: Callable[..., None]) -> Callable[..., None]:
    @wraps(operation)
    def spared(inputs: Any, weights: Any, output: Any, slots: Any, *rest: Any, **named: Any) -> None:
        # Rows of zeros stay zeros, whatever matrix they are multiplied with.
        rows = inputs.masked_fill((slots < 0).unsqueeze(1), 0)
        operation(rows, weights, output, slots.clamp(min=0), *rest, **named)

    return spared


for _name in _OPERATIONS:
    _mended = _sparing_base_rows(getattr(lora_ops, _name))
    setattr(lora_ops, _name, _mended)
    setattr(punica_cpu, _name, _mended)
