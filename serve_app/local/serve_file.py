"""The stack's applications as a file for `serve deploy`, with the settings that may change while they run."""

from pathlib import Path
from typing import Any, Final

import yaml

from serve_app.settings import APP_NAME, WORKER_APP_NAME, Settings

_HEAD: Final = """\
# What this stack runs, for `serve deploy`; `aifactory up` writes it anew.
# Change a value under user_config and deploy: gateways take it over without a restart, requests in flight keep the old one.
# Debate workers do too: `*live` below are the same values.
# The first time, applications that `up` deployed are started again, because Serve did not have them from a file.
# Everything else is read from settings_file; another setting may stand beside it under args, and restarts replicas.
"""


def serve_file(state_dir: Path) -> Path:
    """Where it is."""
    return state_dir / "serve.yaml"


def serve_config(settings: Settings, settings_file: Path) -> str:
    """The text of the file. It names no secret: those are in `settings_file`."""
    arguments = {"settings_file": str(settings_file)}
    live = settings.live()
    applications: list[dict[str, Any]] = [
        {
            "name": APP_NAME,
            "route_prefix": "/",
            "import_path": "serve_app.app:build_from_config",
            "args": arguments,
            "deployments": [{"name": "gateway", "user_config": live}],
        },
        {
            "name": WORKER_APP_NAME,
            "route_prefix": None,
            "import_path": "serve_app.app:build_worker_from_config",
            "args": dict(arguments),
            "deployments": [{"name": "debate-worker", "user_config": live}],
        },
    ]
    http = {"host": settings.host, "port": settings.port}
    return _HEAD + yaml.dump({"http_options": http, "applications": applications}, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Names what stands twice: the live settings are written once, and changed once."""

    def generate_anchor(self, node: yaml.Node) -> str:
        return "live"
