"""What a LoRA adapter's files say, read before the engine sees them. Pure: reads headers, never weights.

vLLM reads adapters without comparing them with the model: one that does not fit is loaded in part, and answers wrongly
or with what another adapter left behind.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve_app.errors import BadRequest, NotFound
from serve_app.replicas.catalog import ADAPTER_CONFIG_FILE, local_adapter

WEIGHTS_FILE: Final = "adapter_model.safetensors"
_HEADER_LIMIT: Final = 64 * 2**20
_PEFT_PREFIX: Final = "base_model.model."
_LOW, _HIGH = ".lora_A.weight", ".lora_B.weight"

Shapes = Mapping[str, tuple[int, ...]]


class AdapterFault(ValueError):
    """The adapter cannot be used with this model; the message says why."""


def checked_adapter(directory: Path, name: str, *, max_rank: int, matrices: Shapes) -> Path:
    """The directory of adapter `name` in `directory`, whose files fit the engine.

    `matrices`: shape (out, in) of the model's own weights by name, as far as known. Raises NotFound, or BadRequest for
    an adapter that the engine could not serve as it was trained.
    """
    path = local_adapter(directory, name)
    if path is None:
        raise not_found(name)
    try:
        rank = read_rank((path / ADAPTER_CONFIG_FILE).read_bytes(), max_rank)
        _check_weights(tensor_shapes(path / WEIGHTS_FILE), rank, matrices)
    except AdapterFault as fault:
        raise BadRequest(f"adapter {name!r} cannot be used: {fault}", param="model", code="adapter_unusable") from fault
    return path


def not_found(name: str) -> NotFound:
    return NotFound(f"adapter {name!r} does not exist where the model's adapters are", param="model", code="model_not_found")


def read_rank(config: bytes | str, max_rank: int) -> int:
    """The rank that adapter_config.json names. Raises AdapterFault for what vLLM could not serve."""
    try:
        fields = json.loads(config)
        rank, alpha = fields["r"], fields["lora_alpha"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterFault(f"its {ADAPTER_CONFIG_FILE} is not PEFT's: {type(error).__name__}: {error}") from error
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):  # True is an int as well
        raise AdapterFault(f"r must be a whole number from 1 and lora_alpha a number, not {rank!r} and {alpha!r}")
    if rank > max_rank:
        raise AdapterFault(f"it has rank {rank}, the engine holds up to {max_rank}; raise max_lora_rank in engine_args")
    # vLLM refuses the first ones itself; the patterns it overlooks, and scales such an adapter wrongly.
    unfit = [field for field in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if fields.get(field)]
    if fields.get("bias", "none") != "none":
        unfit.append("bias")
    if unfit:
        raise AdapterFault(f"vLLM does not serve adapters with {', '.join(unfit)}")
    return rank


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, from its header. Raises AdapterFault when it is missing or broken."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, _HEADER_LIMIT):
                raise AdapterFault(f"{file.name} is not in safetensors format")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except FileNotFoundError as error:
        raise AdapterFault(f"{file.name} is missing (other formats of weights are not read)") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, AdapterFault):
            raise
        raise AdapterFault(f"{file.name} cannot be read: {type(error).__name__}: {error}") from error
    if size != 8 + length + end:
        raise AdapterFault(f"{file.name} has {size} bytes, its header says {8 + length + end}")
    return shapes


def model_matrices(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of a model in a local directory; empty when it lies elsewhere or in another format."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        shapes |= tensor_shapes(file)
    return shapes


def _check_weights(tensors: Shapes, rank: int, matrices: Shapes) -> None:
    """Every A must have its B, both of the one rank, and fit the matrix that they change."""
    modules = {name.removesuffix(_LOW) for name in tensors if name.endswith(_LOW)}
    if not modules:
        raise AdapterFault(f"{WEIGHTS_FILE} holds no LoRA weights")
    if odd := sorted(tensors.keys() - {module + end for module in modules for end in (_LOW, _HIGH)}):
        raise AdapterFault(f"{WEIGHTS_FILE} holds {odd[0]!r}, which is no pair of LoRA matrices")
    for module in sorted(modules):
        low, high = tensors[module + _LOW], tensors.get(module + _HIGH)
        if high is None:
            raise AdapterFault(f"{module} has lora_A but no lora_B")
        if len(low) != 2 or len(high) != 2 or low[0] != rank or high[1] != rank:
            raise AdapterFault(f"{module} has matrices of {low} and {high}, which are not of rank {rank}")
        whole = matrices.get(f"{module.removeprefix(_PEFT_PREFIX)}.weight")
        if whole is not None and whole != (high[0], low[1]):
            raise AdapterFault(f"{module} is made for a matrix of {(high[0], low[1])}, the model's is {whole}")
