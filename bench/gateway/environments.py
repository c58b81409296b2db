"""Peers are installed by us, each in a Python environment of its own."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.gateway.candidate import NotHad

_PIP_S: Final = 1200
_WRITTEN: Final = "bench-installed.txt"  # what an environment holds, written when it is whole


def environment(state: Path, name: str, requirement: str) -> Path:
    """The `bin` folder of an environment with `requirement` in it, made at the first call. Raises NotHad."""
    folder = (state / name).resolve()
    programs, mark = folder / "bin", folder / _WRITTEN
    if mark.exists() and mark.read_text() == requirement:
        return programs
    print(f"installing {requirement} into {folder} …", file=sys.stderr)
    mark.unlink(missing_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], requirement)
    _run([str(programs / "pip"), "install", "--quiet", "--disable-pip-version-check", requirement], requirement)
    mark.write_text(requirement)
    return programs


def version(programs: Path, package: str) -> str:
    """The installed version of a package in an environment."""
    asked = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([str(programs / "python"), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def own_version(package: str) -> str:
    """The version of a package of this environment. Raises NotHad."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise NotHad(f"{package} is not installed in this environment") from None


def _run(argv: list[str], requirement: str) -> None:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotHad(f"installing {requirement} took longer than {_PIP_S} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise NotHad(f"installing {requirement} failed: {' '.join(lines[-2:])[:300]}")
