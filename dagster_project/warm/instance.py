"""The worker's DagsterInstance: the shared records in Postgres, nothing captured, nothing sent home."""

from typing import Any

import psycopg2
from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef

from dagster_project.home import DATABASE, common_config, dagster_dir, dagster_dsn, sqlalchemy_url
from serve_app.errors import Unavailable
from serve_app.settings import Settings

_CONNECT_TIMEOUT_S = 5


def ensure_database(settings: Settings) -> None:
    """Create Dagster's database unless it exists. Raises errors.Unavailable that says what to do."""
    assert settings.postgres_dsn is not None
    try:
        psycopg2.connect(dagster_dsn(settings), connect_timeout=_CONNECT_TIMEOUT_S).close()
        return
    except psycopg2.OperationalError as error:
        if f'database "{DATABASE}" does not exist' not in str(error):
            raise Unavailable(f"Dagster's database cannot be reached: {str(error).strip()}") from error
    connection = psycopg2.connect(settings.postgres_dsn.get_secret_value(), connect_timeout=_CONNECT_TIMEOUT_S)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{DATABASE}"')
    except psycopg2.errors.DuplicateDatabase:
        pass  # another process was quicker
    except psycopg2.Error as error:
        told = f"database {DATABASE!r} is missing and could not be created ({str(error).strip()}): create it for this user"
        raise Unavailable(told) from error
    finally:
        connection.close()


def open_instance(settings: Settings) -> DagsterInstance:
    """The worker's instance; the owner calls `dispose()`. Makes the database and its tables if missing. Blocks."""
    ensure_database(settings)
    folder = dagster_dir(settings)
    (folder / "worker").mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "storage": {
            "custom": {
                "module": "dagster_project.warm.storage",
                "class": "WarmPostgresStorage",
                "config": {"postgres_url": sqlalchemy_url(settings)},
            }
        },
        # Dagster would redirect stdout of the process, and runs side by side would mix.
        "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
        **common_config(folder),
    }
    # The folder has no dagster.yaml, so this configuration is all there is.
    instance = DagsterInstance.from_ref(InstanceRef.from_dir(str(folder / "worker"), overrides=config))
    # Dagster calls logging.config.dictConfig() at the start of every run; two runs in two threads then hang.
    instance.get_yaml_python_handlers = lambda: []  # type: ignore[method-assign]
    return instance
