"""Remove a stack's data: exactly what we made, so that a wrongly set folder loses nothing of its owner."""

import contextlib
import shutil
from pathlib import Path

from serve_app.local.run_dir import run_dir_for

_FOLDERS = ("postgres", "nats", "ray", "dagster", "models", "logs", "logs.previous", "run")
_FILES = ("api_key", "stack.json", "settings.json", "serve.yaml")


def purge(state_dir: Path) -> None:
    """Remove everything that a stack keeps. Only after it has been torn down."""
    shutil.rmtree(run_dir_for(state_dir), ignore_errors=True)
    for name in _FOLDERS:
        if (state_dir / name).exists():
            shutil.rmtree(state_dir / name)
    for name in _FILES:
        (state_dir / name).unlink(missing_ok=True)
    # The lock is still held and goes with the folder, if nothing else is in it.
    if all(left.name == "lock" for left in state_dir.iterdir()):
        (state_dir / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            state_dir.rmdir()
