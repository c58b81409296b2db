"""LoRA adapters in a local directory. Imported on replicas only: it brings ray.llm."""

import json
from pathlib import Path
from typing import Any

from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader

from serve_app.errors import BadRequest, NotFound
from serve_app.replicas.catalog import ADAPTER_CONFIG_FILE, valid_adapter_name


class LocalAdapterLoader(LoraModelLoader):  # type: ignore[misc]  # Ray ships no types
    """Finds `model:adapter` in a directory, where Ray's own loader knows cloud buckets only."""

    def __init__(self, *, directory: str, max_rank: int, download_timeout_s: float | None = None, max_tries: int = 1) -> None:
        super().__init__(download_timeout_s=download_timeout_s, max_tries=max_tries)
        self._directory = Path(directory).resolve()
        self._max_rank = max_rank

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> DiskMultiplexConfig:
        """The adapter's place on disk. Raises NotFound, or BadRequest for an adapter that the engine could not hold."""
        path = checked_adapter(self._directory, lora_model_id.partition(":")[2], max_rank=self._max_rank)
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(path),
            lora_assigned_int_id=global_id_manager.next(),
        )


def checked_adapter(directory: Path, name: str, *, max_rank: int) -> Path:
    """The directory of adapter `name`. A rank above `max_rank` would kill the engine, so it is refused here."""
    path = (directory / name).resolve()
    if not valid_adapter_name(name) or path.parent != directory or not (path / ADAPTER_CONFIG_FILE).is_file():
        raise NotFound(f"adapter {name!r} does not exist in the model's adapter directory", param="model", code="model_not_found")
    try:
        rank = int(json.loads((path / ADAPTER_CONFIG_FILE).read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"adapter {name!r} has an unreadable {ADAPTER_CONFIG_FILE}: {error}", param="model") from error
    if rank > max_rank:
        raise BadRequest(
            f"adapter {name!r} has rank {rank}, the engine holds up to {max_rank}; raise max_lora_rank in engine_args",
            param="model",
        )
    return path
