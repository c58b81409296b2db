"""What the tests of the warm worker share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from dagster_project.warm.instance import open_instance
from serve_app.settings import Settings


@pytest.fixture(scope="module")
def settings(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder: Path = tmp_path_factory.mktemp("dagster")
    return Settings(
        config="simulated", state_dir=folder, postgres_dsn=postgres_server, runs_per_worker=4, tasks_per_run=4, task_retries=1
    )


@pytest.fixture(scope="module")
def instance(settings: Settings) -> Iterator[DagsterInstance]:
    made = open_instance(settings)
    yield made
    made.dispose()
