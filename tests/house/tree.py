"""The files of the repository, as the house rules see them."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("serve_app", "dagster_project")


@cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is or would be committed; without git (an unpacked archive) the code, tests and pages."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
        return tuple(path for name in names if (path := ROOT / name).is_file())
    folders = (*CODE, "tests", "docs", "scripts", "sql", "requirements")
    return tuple(
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def code_files() -> list[Path]:
    """The product's Python files."""
    return [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
