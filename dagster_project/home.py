"""Where Dagster keeps its records: the database address, the dagster.yaml of webserver and daemon, their settings.

Imports nothing heavy, so that start-up code may use it.
"""

import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import yaml

from serve_app.settings import Settings, settings_from_dict, settings_to_dict

DATABASE = "dagster"
SETTINGS_FILE = "settings.json"
DEBATE_JOB = "debate"
# The tag of a Dagster run that is a Ray job.
LAUNCHED_BY = "launched_by"
RAY = "ray"
DEFINITIONS_MODULE = "dagster_project.definitions"
# The webserver's workspace must call the code location by this name, or a run has no job page in the UI.
LOCATION = "aifactory"


def dagster_dsn(settings: Settings) -> str:
    """The address of Dagster's database: on the same Postgres, a database called `dagster`. Raises ValueError."""
    if settings.postgres_dsn is None:
        raise ValueError("postgres_dsn is not set: start the stack first (scripts/up), or set AIFACTORY_POSTGRES_DSN")
    parts = urlsplit(settings.postgres_dsn.get_secret_value())
    return urlunsplit(("postgresql", parts.netloc, f"/{DATABASE}", parts.query, ""))


def sqlalchemy_url(settings: Settings) -> str:
    """The same address for SQLAlchemy, which otherwise would look for another driver."""
    return dagster_dsn(settings).replace("postgresql://", "postgresql+psycopg2://", 1)


def dagster_dir(settings: Settings) -> Path:
    """The folder of Dagster's files: op outputs under storage/, logs under compute_logs/."""
    return settings.state_dir.resolve() / "dagster"


def dagster_yaml(settings: Settings) -> str:
    """The dagster.yaml of webserver and daemon. It holds the database password: store it for its owner only."""
    folder = dagster_dir(settings)
    return yaml.safe_dump(
        {
            "storage": {"postgres": {"postgres_url": sqlalchemy_url(settings)}},
            "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
            "run_launcher": {"module": "dagster_project.launcher", "class": "WarmRunLauncher"},
            **common_config(folder),
            "compute_logs": {
                "module": "dagster.core.storage.local_compute_log_manager",
                "class": "LocalComputeLogManager",
                "config": {"base_dir": str(folder / "compute_logs")},
            },
            # A warm run has no process of its own to watch; JetStream redelivery recovers it.
            "run_monitoring": {"enabled": False},
        },
        sort_keys=False,
    )


def settings_json(settings: Settings) -> str:
    """What stands in SETTINGS_FILE, beside dagster.yaml. It holds passwords: store it for its owner only."""
    return json.dumps(settings_to_dict(settings), indent=1)


def stored_settings(folder: str) -> Settings:
    """The settings of the stack that a Dagster process belongs to; `folder` is its instance's root directory."""
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: `aifactory up` writes it beside dagster.yaml")
    return settings_from_dict(json.loads(path.read_text()))


def common_config(folder: Path) -> dict[str, object]:
    """What webserver, daemon and worker must agree on."""
    return {
        "telemetry": {"enabled": False},
        "local_artifact_storage": {
            "module": "dagster.core.storage.root",
            "class": "LocalArtifactStorage",
            "config": {"base_dir": str(folder)},
        },
    }
