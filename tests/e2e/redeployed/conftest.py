"""One stack for every test here: what differs between them is deployed again, by the file that `up` writes.

It is started with debates and other jobs as Ray jobs, with adapters, and with a collector of its spans. The last module
ends it.
"""

from collections.abc import Iterator

import pytest
import yaml

from serve_app.settings import config_path
from tests.e2e.redeployed.deployed import Deployed
from tests.e2e.stack_under_test import RunningStack, running_stack
from tests.integration.trace_collector import Collector, collecting


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="package")
def stack(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("config")
    (folder / "adapters" / "law").mkdir(parents=True)
    (folder / "adapters" / "law" / "adapter_config.json").write_text("{}")
    config = yaml.safe_load(config_path("simulated").read_text())
    small, large = config["models"]
    small["adapters"] = {"directory": str(folder / "adapters")}
    large["adapters"] = {"directory": "s3://bucket/adapters"}
    (folder / "adapted.yaml").write_text(yaml.safe_dump(config))
    settings = {"debate_launch": "ray", "heavy_jobs": "ray", "otlp_endpoint": collector.url}
    with running_stack(str(folder / "adapted.yaml"), **settings) as running:
        yield running


@pytest.fixture(scope="package")
def files(stack: RunningStack) -> Deployed:
    return Deployed(stack)
