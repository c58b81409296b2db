"""Adapters in a bucket, fetched by Ray's own code over S3's protocol."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from serve_app.configured import AdapterConfig
from serve_app.errors import BadRequest, NotFound
from tests.integration.s3_server import serve_bucket
from tests.unit.test_replicas_adapter_files import write_adapter

pytestmark = [
    pytest.mark.engine,  # Ray's code for models imports vLLM
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
]

_BUCKET = "pyarrow-s3://bucket/adapters"


class Bucket:
    """A replica's loader, and the bucket that it reads."""

    def __init__(self, folder: Path, fetched: list[str]) -> None:
        from ray.serve.llm import LLMConfig

        from serve_app.replicas.adapters import adapter_loader

        self.folder, self.fetched = folder, fetched
        self.config = LLMConfig(
            model_loading_config={"model_id": "m", "model_source": "x"},
            engine_kwargs={"max_lora_rank": 16},
            lora_config={"dynamic_lora_loading_path": _BUCKET},
        )
        self._loader: Any = adapter_loader(self.config, AdapterConfig(directory=f"{_BUCKET}/", max_adapters_per_replica=2))(
            download_timeout_s=30, max_tries=1
        )

    async def found(self, name: str) -> Any:
        """What Serve keeps as long as it holds the adapter."""
        found = await self._loader.load_model_from_config(f"m:{name}", self.config)
        assert found.model_id == f"m:{name}"
        return found

    async def load(self, name: str) -> Path:
        return Path((await self.found(name)).local_path)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    folder = tmp_path / "bucket" / "adapters"
    write_adapter(folder / "law")
    write_adapter(tmp_path / "bucket" / "secret")
    with serve_bucket(tmp_path / "bucket", "bucket") as (address, fetched):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        _forget_what_ray_knows()
        yield Bucket(folder, fetched)


def _forget_what_ray_knows() -> None:
    """Ray remembers for minutes which configurations it has read, by their address."""
    from ray.llm._internal.common.utils import lora_utils

    remembered: Any = lora_utils.get_object_from_cloud
    for cell in remembered.__closure__:
        if hasattr(cell.cell_contents, "_cache"):
            cell.cell_contents._cache.clear()


def _files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"}


async def test_an_adapter_is_fetched_whole_and_again_when_it_was_let_go(bucket: Bucket) -> None:
    """To the same path: vLLM reads an adapter that it has let go where it was the first time."""
    path = await bucket.load("law")
    assert sorted(file.name for file in path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for file in path.iterdir():
        assert file.read_bytes() == (bucket.folder / "law" / file.name).read_bytes()
    shutil.rmtree(bucket.folder / "law")
    write_adapter(bucket.folder / "law", lora_alpha=99)
    assert await bucket.load("law") == path
    for file in path.iterdir():
        assert file.read_bytes() == (bucket.folder / "law" / file.name).read_bytes()
    assert _files(path.parent.parent) == {file.name for file in path.iterdir()}


async def test_adapters_on_disk_are_bounded_and_those_in_use_stay(bucket: Bucket) -> None:
    names = [f"law-{number}" for number in range(6)]
    for name in names:
        write_adapter(bucket.folder / name)
    held = await bucket.found(names[0])
    paths = [Path(held.local_path), *[await bucket.load(name) for name in names[1:]]]
    assert [path.exists() for path in paths] == [True, False, False, True, True, True]
    del held
    await bucket.load("law")
    assert [path.name for path in paths if path.exists()] == names[3:]


@pytest.mark.parametrize("name", ["absent", "../secret", "..", "", "law/../../secret", "/etc", ".law", "law?x", "l" * 200])
async def test_what_is_not_there_and_what_lies_elsewhere_is_not_found(bucket: Bucket, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        await bucket.load(name)
    assert caught.value.code == "model_not_found"
    assert bucket.fetched == []


async def test_an_adapter_that_is_too_large_is_not_even_fetched(bucket: Bucket) -> None:
    write_adapter(bucket.folder / "large", r=64)
    with pytest.raises(BadRequest, match="rank 64, the engine holds up to 16"):
        await bucket.load("large")
    assert bucket.fetched == ["adapters/large/adapter_config.json"]


async def test_an_adapter_that_came_in_part_is_refused_and_fetched_again(bucket: Bucket) -> None:
    weights = bucket.folder / "law" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(BadRequest, match="its header says"):
        await bucket.load("law")
    weights.write_bytes(whole)
    assert (await bucket.load("law") / weights.name).read_bytes() == whole


async def test_a_fetch_that_missed_a_file_is_made_again(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.llm._internal.common.utils.cloud_utils import CloudFileSystem

    with monkeypatch.context() as broken:
        broken.setattr(CloudFileSystem, "download_files", lambda **_: None)
        with pytest.raises(NotFound):
            await bucket.load("law")
    assert sorted(file.name for file in (await bucket.load("law")).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


async def test_two_models_keep_adapters_of_one_name_apart(bucket: Bucket, tmp_path: Path) -> None:
    first = await bucket.load("law")
    shutil.rmtree(bucket.folder / "law")
    write_adapter(bucket.folder / "law", lora_alpha=99)
    other = Bucket(bucket.folder, bucket.fetched)
    second = await other.load("law")
    assert first != second
    assert json.loads((second / "adapter_config.json").read_text())["lora_alpha"] == 99
    assert json.loads((first / "adapter_config.json").read_text())["lora_alpha"] == 8


def test_a_library_that_is_missing_is_told_of_when_the_replica_starts(bucket: Bucket) -> None:
    from serve_app.replicas.adapters import adapter_loader

    if find_spec("boto3") is not None:
        pytest.skip("boto3 is installed here")
    with pytest.raises(ValueError, match=r"install boto3 on every node that runs replicas, or name the bucket pyarrow-s3://"):
        adapter_loader(bucket.config, AdapterConfig(directory="s3://bucket/adapters"))
