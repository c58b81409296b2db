"""One webserver for every test here. Database, NATS and workers are each test's own: they start quickly.

The page reads where they are at every launch and every Terminate, from the settings beside dagster.yaml.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance
from pydantic import SecretStr

from dagster_project.home import SETTINGS_FILE
from dagster_project.warm.instance import open_instance
from serve_app.local.dagster_home import DagsterUi, write_home
from serve_app.local.processes import last_lines
from serve_app.settings import Settings
from tests.contracts.conftest import NatsServer, own_nats  # noqa: F401 - a fixture
from tests.integration.on_dagster_page.page import Page, serving


@pytest.fixture(scope="package")
def page_settings(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What is the same for all tests: the folder, and the server with Dagster's database."""
    folder: Path = tmp_path_factory.mktemp("page")
    return Settings(
        config="simulated", state_dir=folder, postgres_dsn=postgres_server, lease_s=6, queue_ack_wait_s=3, tasks_per_run=4
    )


@pytest.fixture(scope="package")
def ui_instance(page_settings: Settings) -> Iterator[DagsterInstance]:
    made = open_instance(page_settings)
    yield made
    made.dispose()


@pytest.fixture(scope="package")
def webserver(page_settings: Settings, ui_instance: DagsterInstance) -> Iterator[DagsterUi]:
    with serving(page_settings, page_settings.state_dir) as ui:
        yield ui


@pytest.fixture
def ui_settings(page_settings: Settings, postgres_dsn: str, own_nats: NatsServer) -> Settings:  # noqa: F811 - the fixture
    return page_settings.model_copy(update={"postgres_dsn": SecretStr(postgres_dsn), "nats_url": SecretStr(own_nats.url)})


@pytest.fixture
async def page(webserver: DagsterUi, ui_settings: Settings) -> AsyncIterator[Page]:
    """The webserver over this test's database and NATS."""
    home = write_home(ui_settings)
    assert (home / SETTINGS_FILE).stat().st_mode & 0o077 == 0, "it holds passwords"
    assert webserver._answers(), last_lines(webserver.web_log)
    made = Page(webserver.url)
    yield made
    await made.close()
