"""An adapter is read before the engine sees it, and refused with what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import BadRequest, NotFound
from serve_app.replicas.adapter_files import AdapterFault, checked_adapter, model_matrices, tensor_shapes

Shape = tuple[int, ...]
_Q = "model.layers.0.self_attn.q_proj"
_LOW, _HIGH = f"base_model.model.{_Q}.lora_A.weight", f"base_model.model.{_Q}.lora_B.weight"
_MODEL: dict[str, Shape] = {f"{_Q}.weight": (12, 6)}


def write_tensors(file: Path, shapes: dict[str, Shape], *, spare: int = 0) -> None:
    """A safetensors file of zeros; `spare` bytes more or less than its header says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(end + spare))


def write_adapter(folder: Path, shapes: dict[str, Shape] | None = None, **config: Any) -> None:
    folder.mkdir(parents=True)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    write_tensors(folder / "adapter_model.safetensors", {_LOW: (4, 6), _HIGH: (12, 4)} if shapes is None else shapes)


def check(directory: Path, name: str = "law") -> Path:
    return checked_adapter(directory, name, max_rank=16, matrices=_MODEL)


def test_a_sound_adapter_is_found(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law")
    assert check(tmp_path) == tmp_path / "law"


@pytest.mark.parametrize("name", ["absent", "../law", "..", ".", "", "/etc", "a/../law", "law/", "law\x00", "l" * 129, ".law"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path / "law")
    write_adapter(tmp_path / "adapters" / "inside")
    with pytest.raises(NotFound) as caught:
        check(tmp_path / "adapters", name)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_no_link_leads_out_of_the_directory(tmp_path: Path) -> None:
    write_adapter(tmp_path / "secret")
    write_adapter(tmp_path / "adapters" / "law-v2")
    (tmp_path / "adapters" / "law").symlink_to("law-v2")
    (tmp_path / "adapters" / "spy").symlink_to(tmp_path / "secret")
    assert check(tmp_path / "adapters") == tmp_path / "adapters" / "law-v2"
    with pytest.raises(NotFound):
        check(tmp_path / "adapters", "spy")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"r": 64}, "rank 64, the engine holds up to 16; raise max_lora_rank"),
        ({"r": 0}, "r must be a whole number"),
        ({"r": "4"}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"lora_alpha": None}, "lora_alpha a number"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_a_configuration_that_vllm_cannot_serve_is_refused(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    write_adapter(tmp_path / "law", **config)
    with pytest.raises(BadRequest, match=f"adapter 'law' cannot be used.*{told}") as caught:
        check(tmp_path)
    assert (caught.value.param, caught.value.code) == ("model", "adapter_unusable")


_DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "{}", '{"r": 4}', _DEEP], ids=lambda text: text[:9])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path / "law")
    (tmp_path / "law" / "adapter_config.json").write_text(text)
    with pytest.raises(BadRequest, match=r"adapter_config\.json is not PEFT's"):
        check(tmp_path)


MISFITS: list[tuple[dict[str, Shape], str]] = [
    ({}, "holds no LoRA weights"),
    ({_LOW: (4, 6)}, "lora_A but no lora_B"),
    ({_HIGH: (12, 4)}, "holds no LoRA weights"),
    ({_LOW: (8, 6), _HIGH: (12, 8)}, "not of rank 4"),
    ({_LOW: (4, 6), _HIGH: (12, 8)}, "not of rank 4"),
    ({_LOW: (4,), _HIGH: (12, 4)}, "not of rank 4"),
    ({_LOW: (4, 3), _HIGH: (12, 4)}, r"made for a matrix of \(12, 3\), the model's is \(12, 6\)"),
    ({_LOW: (4, 6), _HIGH: (6, 4)}, r"made for a matrix of \(6, 6\)"),
    ({_LOW: (4, 6), _HIGH: (12, 4), "base_model.model.lm_head.weight": (9, 6)}, "no pair of LoRA matrices"),
]


@pytest.mark.parametrize(("shapes", "told"), MISFITS)
def test_weights_that_do_not_fit_the_model_are_refused(tmp_path: Path, shapes: dict[str, Shape], told: str) -> None:
    """vLLM takes most of these, and answers wrongly: with the base model, with noise, or with another adapter's weights."""
    write_adapter(tmp_path / "law", shapes)
    with pytest.raises(BadRequest, match=told):
        check(tmp_path)


def test_a_matrix_of_the_model_that_is_not_known_is_not_compared(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law", {_LOW: (4, 3), _HIGH: (5, 4)})
    assert checked_adapter(tmp_path, "law", max_rank=16, matrices={})


@pytest.mark.parametrize("spare", [-1, 1])
def test_a_file_that_is_cut_or_longer_is_refused(tmp_path: Path, spare: int) -> None:
    write_adapter(tmp_path / "law")
    write_tensors(tmp_path / "law" / "adapter_model.safetensors", {_LOW: (4, 6), _HIGH: (12, 4)}, spare=spare)
    with pytest.raises(BadRequest, match="its header says"):
        check(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"x" * 1000] + [len(header).to_bytes(8, "little") + header for header in (b"nope", b"[]", _DEEP.encode())],
    ids=lambda content: content[:12].hex(),
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(content)
    with pytest.raises(AdapterFault, match=r"adapter_model\.safetensors"):
        tensor_shapes(file)


def test_weights_that_are_missing_are_told_of(tmp_path: Path) -> None:
    write_adapter(tmp_path / "law")
    (tmp_path / "law" / "adapter_model.safetensors").rename(tmp_path / "law" / "adapter_model.bin")
    with pytest.raises(BadRequest, match="missing"):
        check(tmp_path)


def test_the_shapes_of_a_model_come_from_all_its_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model-1.safetensors", {"a.weight": (2, 3)})
    write_tensors(tmp_path / "model-2.safetensors", {"b.weight": (4,)})
    assert model_matrices(tmp_path) == {"a.weight": (2, 3), "b.weight": (4,)}
    assert model_matrices(tmp_path / "org" / "name") == {}
