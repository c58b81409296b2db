"""`serve deploy` with the file that `aifactory up` writes, and changes of knobs by user_config that restart nothing."""

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.local.deployment import ray_variables
from serve_app.local.serve_file import serve_file
from serve_app.local.state import load_state
from serve_app.settings import config_path
from tests.e2e.promtail_files import promtail_reads
from tests.e2e.stack_under_test import RunningStack, running_stack, until

pytestmark = pytest.mark.timeout(900)

_SERVE = str(Path(sys.executable).parent / "serve")
_START_S = 300.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("config")
    (folder / "adapters" / "law").mkdir(parents=True)
    (folder / "adapters" / "law" / "adapter_config.json").write_text("{}")
    config = yaml.safe_load(config_path("simulated").read_text())
    small, large = config["models"]
    small["adapters"] = {"directory": str(folder / "adapters")}
    large["adapters"] = {"directory": "s3://bucket/adapters"}
    (folder / "adapted.yaml").write_text(yaml.safe_dump(config))
    with running_stack(str(folder / "adapted.yaml")) as running:
        yield running


class Deployed:
    """The file of a stack, and what Serve has made of it. `text`: the file as `up` wrote it."""

    def __init__(self, stack: RunningStack) -> None:
        state_dir = Path(stack.info["state_dir"])
        state = load_state(state_dir)
        assert state is not None
        self._env = {**stack.env, **ray_variables(state), "RAY_DASHBOARD_ADDRESS": stack.info["ray_dashboard"]}
        self.file = serve_file(state_dir)
        self.text = self.file.read_text()

    def set_knobs(self, knobs: dict[str, Any]) -> None:
        """Deploy the file as `up` wrote it, with these live settings of the gateway."""
        config = yaml.safe_load(self.text)
        (gateway,) = config["applications"][0]["deployments"]
        gateway["user_config"] = knobs
        self.file.write_text(yaml.safe_dump(config))
        self.command("deploy", str(self.file))

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [_SERVE, *arguments],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def details(self) -> dict[str, Any]:
        """What Serve says of its applications, replicas included."""
        token = Path(self._env["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        address = f"{self._env['RAY_DASHBOARD_ADDRESS']}/api/serve/applications/"
        answer = httpx.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        applications: dict[str, Any] = answer.json()["applications"]
        return applications

    def runs(self) -> bool:
        """Whether both applications run, from a file."""
        found = self.details()
        assert {name: told["message"] for name, told in found.items() if told["status"] == "DEPLOY_FAILED"} == {}
        states = {name: (told["status"], told["source"]) for name, told in found.items()}
        return states == dict.fromkeys(("aifactory", "aifactory-worker"), ("RUNNING", "declarative"))

    def replicas(self) -> set[str]:
        """The actors of all replicas."""
        deployments = [d for application in self.details().values() for d in application["deployments"].values()]
        return {replica["actor_id"] for deployment in deployments for replica in deployment["replicas"]}


@pytest.fixture(scope="module")
def files(stack: RunningStack) -> Deployed:
    return Deployed(stack)


@pytest.fixture
async def deployed(files: Deployed) -> Deployed:
    """Both applications run from the file, with the knobs as `up` wrote them; the first time they are started again."""
    files.file.write_text(files.text)
    files.command("deploy", str(files.file))
    await until(files.runs, _START_S, "applications from the file")
    return files


async def ask(stack: RunningStack, text: str = "hello", **fields: Any) -> httpx.Response:
    async with stack.http() as http:
        body = {"model": "sim-small", "messages": [{"role": "user", "content": text}], **fields}
        return await http.post("/v1/chat/completions", json=body)


async def test_adapters_are_models_to_a_client(stack: RunningStack) -> None:
    async with stack.http() as http:
        listed = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
        assert {"sim-small", "sim-small:law", "sim-large"} <= set(listed)
        assert listed["sim-small:law"]["parent"] == "sim-small"
        assert (await http.get("/v1/models/sim-small:law")).status_code == 200

    by_id = await ask(stack, "who may park here?", model="sim-small:law")
    by_field = await ask(stack, "who may park here?", x_adapter="law")
    base = await ask(stack, "who may park here?")
    assert [answer.status_code for answer in (by_id, by_field, base)] == [200] * 3
    assert [answer.headers["x-cache"] for answer in (by_id, by_field, base)] == ["miss", "exact", "miss"]
    assert (await ask(stack, model="sim-large:whatever")).status_code == 200  # only a replica could tell

    for wrong in ({"model": "sim-small:nope"}, {"x_adapter": "nope"}, {"model": "sim-small:../law"}, {"x_adapter": ".."}):
        refused = await ask(stack, **wrong)
        assert refused.status_code == 404, refused.text
        error = refused.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
        assert "sim-small:law" in error["message"]


async def test_the_file_deploys_and_its_knobs_change_without_a_restart(stack: RunningStack, deployed: Deployed) -> None:
    assert deployed.file.stat().st_mode & 0o077 == 0
    for secret in ("postgresql://", "nats://"):
        assert secret not in deployed.text

    assert (await ask(stack)).status_code == 200
    assert (await ask(stack, model="debate")).status_code == 200

    running, long = deployed.replicas(), "word " * 1000
    assert (await ask(stack, long)).status_code == 200
    (gateway,) = yaml.safe_load(deployed.text)["applications"][0]["deployments"]
    deployed.set_knobs(gateway["user_config"] | {"max_body_bytes": 2000, "cache_enabled": False})

    async def refused() -> bool:
        return (await ask(stack, long)).status_code == 413

    await until(refused, _START_S, "the new limit of a body")
    for _ in range(2):
        assert (await ask(stack, "never cached now")).headers["x-cache"] == "bypass"
    await until(deployed.runs, _START_S, "the applications")
    assert deployed.replicas() == running


async def test_a_wrong_knob_ends_no_gateway_and_a_knob_left_out_is_as_before(stack: RunningStack, deployed: Deployed) -> None:
    running, question = deployed.replicas(), f"{time.time_ns()}"

    async def cached() -> bool:
        answers = [await ask(stack, question) for _ in range(2)]
        assert {answer.status_code for answer in answers} == {200}
        return answers[1].headers["x-cache"] == "exact"

    async def set_and_wait(knobs: dict[str, Any], works: bool) -> None:
        deployed.set_knobs(knobs)
        await until(partial(_has_value, cached, works), _START_S, f"cache: {works}")

    await set_and_wait({"cache_enabled": False}, False)
    await set_and_wait({}, True)
    deployed.set_knobs({"bus": "core", "cache_enabled": False})
    await until(partial(_refused, stack, "bus"), _START_S, "the refusal in the gateway's log")
    assert await cached()
    await set_and_wait({"cache_enabled": False}, False)
    await until(deployed.runs, _START_S, "the applications")
    assert deployed.replicas() == running


async def _has_value(condition: Callable[[], Awaitable[bool]], value: bool) -> bool:
    return await condition() is value


def _refused(stack: RunningStack, knob: str) -> bool:
    lines = [json.loads(line) for line in promtail_reads(stack, "aifactory") if line.startswith("{")]
    told = [line["message"] for line in lines if line.get("component") == "gateway"]
    return any("live settings refused" in message and repr(knob) in message for message in told)
