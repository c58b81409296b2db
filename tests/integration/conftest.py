"""What the tests of the gateway share, and those of the warm worker."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from dagster import DagsterInstance

from dagster_project.warm.instance import open_instance
from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.settings import Settings
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    """A gateway as it comes; a module that wants another one has a fixture of this name."""
    async with serve_gateway() as served:
        yield served


@pytest.fixture
async def http(gateway: GatewayUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key."""
    async with gateway.http() as client:
        yield client


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


@pytest.fixture(scope="module")
def embedder() -> Iterator[OnnxEmbedder]:
    """The product's model."""
    made = load_embedder(Settings(config="simulated"))
    yield made
    made.close()
