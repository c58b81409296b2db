"""The folder of a stack's sockets and of Ray's session: its path is short, and it is closed to others."""

import hashlib
import os
from pathlib import Path

# A Unix socket's path may have 107 bytes. HAProxy puts 56 hex digits and its own temporary suffix below our folder.
_LONGEST_RUN_DIR = 24


class RunDirError(RuntimeError):
    """The folder cannot be used."""


def run_dir_for(state_dir: Path) -> Path:
    """Where sockets and session logs live: below the state folder if the path is short enough, else below /tmp."""
    inside = state_dir / "run"
    if len(os.fsencode(inside)) <= _LONGEST_RUN_DIR:
        return inside
    digest = hashlib.sha256(f"{os.getuid()}:{state_dir}".encode()).hexdigest()[:8]
    return Path("/tmp") / f"aifactory-{digest}"  # noqa: S108 - made owner-only and checked in make_private


def make_private(folder: Path) -> None:
    """Create the folder for our eyes only. Raises RunDirError if somebody else owns it or it is a link."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid():
        raise RunDirError(f"{folder} belongs to somebody else: remove it, or set another AIFACTORY_STATE_DIR")
    folder.chmod(0o700)
