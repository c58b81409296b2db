"""The values that Ray's endpoint shows of a gateway's work, after each way in which a request can end."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from serve_app import telemetry
from serve_app.errors import UpstreamFailed
from tests.integration.gateway_server import ask, serve_gateway, until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

WAIT_S = 120.0  # Ray reports every ten seconds
TAGS = {tag for _, _, tags in telemetry.METRICS.values() for tag in tags}
PATH = "/v1/chat/completions"
COUNTED = {
    f"requests_total path={PATH} status=200": 3,
    f"requests_total path={PATH} status=400": 1,
    f"requests_total path={PATH} status=502": 1,
    "requests_total path=/v1/models status=401": 1,
    "runs_total outcome=succeeded route=direct": 1,
    "runs_total outcome=failed route=direct": 1,
    "runs_total outcome=cancelled route=direct": 1,
    "cache_results_total result=miss": 3,
    "cache_results_total result=exact": 1,
    "streams_dropped_total reason=client route=direct": 1,
    # Of histograms, how often something was observed.
    "run_seconds_count route=direct": 3,
    "time_to_first_token_seconds_count route=direct": 2,
    "sse_seconds_count route=direct": 1,
}


@pytest.fixture
def recording(local_ray: None) -> Iterator[None]:
    """This process records its metrics, from nothing on: what tests without a Ray did was dropped."""
    telemetry._in_ray.cache_clear()
    telemetry._metric.cache_clear()
    yield
    telemetry._in_ray.cache_clear()
    telemetry._metric.cache_clear()


def exported() -> dict[str, float]:
    """What this process has told Ray's endpoint so far: value by metric and labels, without those that Ray adds."""
    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30, trust_env=False).text
    own = ray.get_runtime_context().get_worker_id()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            _, found, name = sample.name.partition("aifactory_")
            if found and sample.labels.get("WorkerId") == own:
                ours = [f"{label}={value}" for label, value in sorted(sample.labels.items()) if label in TAGS]
                values[" ".join([name, *ours])] = sample.value
    return values


async def test_each_end_of_a_request_is_counted_once_under_its_name(recording: None) -> None:
    async with serve_gateway(replica_retries=0) as gateway, gateway.http() as http, gateway.http("wrong") as stranger:
        for _ in range(2):  # the second one comes from the cache
            await ask(http, "What is the capital of France?")
        assert (await http.post(PATH, json={"model": "m"})).status_code == 400
        assert (await stranger.get("/v1/models")).status_code == 401

        gateway.replicas.error = UpstreamFailed("the engine died")
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "And of Peru?"}]}
        assert (await http.post(PATH, json=body)).status_code == 502

        gateway.replicas.error, gateway.replicas.hold = None, asyncio.Event()
        body = {"model": "m", "messages": [{"role": "user", "content": "And of Chile?"}], "stream": True}
        async with http.stream("POST", PATH, json=body) as streamed:
            async for line in streamed.aiter_lines():
                if "The " in line:
                    break
        await until(lambda: gateway.replicas.running == 0)

    told: dict[str, float] = {}
    try:
        async with asyncio.timeout(WAIT_S):
            while not COUNTED.items() <= told.items():
                await asyncio.sleep(0.5)
                told = await asyncio.to_thread(exported)
    except TimeoutError:
        pass  # what follows says what is missing
    assert {name: told.get(name) for name in COUNTED} == COUNTED
    known = {name.partition(" ")[0] for name in COUNTED}
    assert {name for name in told if name.partition(" ")[0] in known} == set(COUNTED), "something else was counted"
