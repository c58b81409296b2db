"""Who may import whom: the contracts in pyproject.toml, and what they cannot see."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT, code_files

HEAVY = ("vllm", "torch", "transformers", "ray.llm", "ray.serve.llm", "dagster", "dagster_project")


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_gateway_process_imports_nothing_heavy() -> None:
    loaded = _modules_after("serve_app.gateway.deployment")
    assert "serve_app.lifecycle.handle" in loaded
    assert not loaded & set(HEAVY)


def test_command_line_imports_neither_ray_nor_engine() -> None:
    loaded = _modules_after("serve_app.cli")
    assert not loaded & {*HEAVY, "ray"}


def test_only_replicas_import_the_engine() -> None:
    """import-linter sees `ray` as one module; ray.serve.llm and ray.llm bring vLLM."""
    guilty = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in code_files()
        for name in _imports(path)
        if _is_part_of(name, ("ray.serve.llm", "ray.llm", "vllm", "torch")) and path.parent.name != "replicas"
    ]
    assert guilty == []


def _modules_after(module: str) -> set[str]:
    code = f"import {module}, json, sys; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case _:
                pass


def _is_part_of(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
