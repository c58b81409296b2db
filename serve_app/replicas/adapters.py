"""Brings LoRA adapters to the engine, from a directory or a bucket. Imported on replicas only: it brings ray.llm."""

import asyncio
import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import ray
from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.common.utils.lora_utils import CLOUD_OBJECT_MISSING, get_object_from_cloud
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm import LLMConfig

from serve_app.configured import AdapterConfig
from serve_app.errors import BadRequest
from serve_app.replicas.adapter_files import AdapterFault, checked_adapter, model_matrices, not_found, read_rank
from serve_app.replicas.catalog import ADAPTER_CONFIG_FILE, is_local, valid_adapter_name

# What Ray reads some kinds of buckets with, and does not bring.
_LIBRARIES: Final = {"s3": "boto3", "azure": "adlfs", "abfss": "adlfs"}


class AdapterLoader(LoraModelLoader):  # type: ignore[misc]  # Ray ships no types
    """Ray's loader, which knows buckets only, with local directories, and with checks before the engine sees anything.

    `matrices`: shapes of the model's weights, for the checks. Serve calls it for an adapter that the replica does not
    hold, one at a time; it holds `most_held`. On disk are those and as many others, and what a fetch has begun.
    """

    def __init__(
        self,
        *,
        directory: str,
        local: bool,
        max_rank: int,
        matrices: Mapping[str, tuple[int, ...]],
        most_held: int,
        download_timeout_s: float | None = None,
        max_tries: int = 1,
    ) -> None:
        # Ray's own place is the same for all models and replicas of a machine, by the adapter's name alone.
        self._downloads = None if local else _download_folder(directory)
        if self._downloads is not None:
            weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)
        fetches = None if self._downloads is None else str(self._downloads / "fetches")
        super().__init__(lora_root=fetches, download_timeout_s=download_timeout_s, max_tries=max_tries)
        self._kept: dict[str, weakref.ref[DiskMultiplexConfig]] = {}  # by name, the oldest first; dead if Serve let it go
        self._most_held = most_held
        self._directory = directory
        self._max_rank = max_rank
        self._matrices = matrices

    async def load_model_from_config(self, lora_model_id: str, llm_config: Any) -> DiskMultiplexConfig:
        """The adapter's place on disk. Raises NotFound, or BadRequest for an adapter that the engine could not serve."""
        name = lora_model_id.partition(":")[2]
        if self._downloads is None:
            path = await self._checked(Path(self._directory), name)
            return DiskMultiplexConfig(
                model_id=lora_model_id,
                max_total_tokens=None,
                local_path=str(path),
                lora_assigned_int_id=global_id_manager.next(),
            )
        await self._check_in_bucket(name)
        if not self.active_syncing_tasks:  # a fetch goes on when the request that wanted it is gone
            await asyncio.to_thread(shutil.rmtree, self.lora_root, ignore_errors=True)
        found: DiskMultiplexConfig = await super().load_model_from_config(lora_model_id, llm_config)
        # Fetched anew each time: it may be another one by then, and Ray tells of a file that it missed in its log only.
        self.disk_cache.clear()
        await self._checked(Path(self.lora_root), name)
        return await self._keep(self._downloads, name, found)

    async def _keep(self, downloads: Path, name: str, fetched: DiskMultiplexConfig) -> DiskMultiplexConfig:
        """Put it where vLLM, which never forgets a path, reads it again; remove the oldest that Serve does not hold."""
        kept: DiskMultiplexConfig = fetched.model_copy(update={"local_path": str(downloads / "kept" / name)})
        self._kept.pop(name, None)
        self._kept[name] = weakref.ref(kept)
        let_go = [other for other, held in self._kept.items() if held() is None]
        surplus = let_go[: max(0, len(self._kept) - 2 * self._most_held)]
        for other in surplus:
            del self._kept[other]
        await asyncio.to_thread(_put, downloads, Path(fetched.local_path), name, surplus)
        return kept

    async def _checked(self, directory: Path, name: str) -> Path:
        return await asyncio.to_thread(checked_adapter, directory, name, max_rank=self._max_rank, matrices=self._matrices)

    async def _check_in_bucket(self, name: str) -> None:
        """Refuse what is not there, and what is too large, before anything else is fetched."""
        if not valid_adapter_name(name):
            raise not_found(name)
        config = await get_object_from_cloud(f"{self._directory}/{name}/{ADAPTER_CONFIG_FILE}")
        if config is CLOUD_OBJECT_MISSING:
            raise not_found(name)
        try:
            read_rank(config, self._max_rank)
        except AdapterFault as fault:
            raise BadRequest(f"adapter {name!r} cannot be used: {fault}", param="model", code="adapter_unusable") from fault


def adapter_loader(llm_config: LLMConfig, adapters: AdapterConfig) -> Callable[..., AdapterLoader]:
    """What Ray's server is to call for its loader. Raises ValueError when this node cannot read the bucket."""
    scheme = adapters.directory.partition("://")[0]
    needed = _LIBRARIES.get(scheme)
    if needed and find_spec(needed) is None:
        other = ", or name the bucket pyarrow-s3://…" if scheme == "s3" else ""
        raise ValueError(f"adapters in {adapters.directory}: install {needed} on every node that runs replicas{other}")
    source = llm_config.model_loading_config.model_source
    return partial(
        AdapterLoader,
        directory=adapters.directory.rstrip("/"),
        local=is_local(adapters),
        max_rank=llm_config.engine_kwargs["max_lora_rank"],
        matrices=model_matrices(Path(source)) if isinstance(source, str) else {},
        most_held=adapters.max_adapters_per_replica,
    )


def _put(downloads: Path, fetched: Path, name: str, surplus: list[str]) -> None:
    """`fetched` becomes adapter `name`. What was there is renamed first: an engine that finds none at its path ends."""
    place = downloads / "kept" / name
    place.parent.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="replaced-", dir=downloads))
    if place.exists():
        place.rename(aside / name)
    fetched.rename(place)
    for folder in (aside, *(place.with_name(other) for other in surplus)):
        shutil.rmtree(folder, ignore_errors=True)


def _download_folder(bucket: str) -> Path:
    """A folder of this replica's own in Ray's session, so that what a killed replica leaves goes with the session."""
    mark = hashlib.sha256(bucket.encode()).hexdigest()[:8]
    session = None
    if ray.is_initialized():
        context = ray.get_runtime_context()
        session = Path(context.get_temp_dir()) / context.get_session_name()
    return Path(tempfile.mkdtemp(prefix=f"adapters-{mark}-", dir=session))
