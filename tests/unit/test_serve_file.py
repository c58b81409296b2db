"""The file for `serve deploy` that `aifactory up` writes."""

from pathlib import Path

import yaml

from dagster_project.worker import DEPLOYMENT
from serve_app.local.serve_file import serve_config
from serve_app.settings import Settings


def test_gateway_and_worker_share_the_live_settings_which_stand_there_once() -> None:
    settings = Settings(config="simulated", stall_timeout_s=77)
    text = serve_config(settings, Path("/state/settings.json"))
    found = [deployment for application in yaml.safe_load(text)["applications"] for deployment in application["deployments"]]
    assert found == [{"name": name, "user_config": settings.live()} for name in ("gateway", DEPLOYMENT)]
    assert text.count("stall_timeout_s: 77") == 1
