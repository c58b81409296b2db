"""The same application on a user's own Postgres and NATS, which this test also takes away and brings back."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app.local.ports import choose_port
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.local.processes import ProcessRecord
from tests.contracts.conftest import NatsServer
from tests.e2e.dagster_page import BY_RAY, launch_maintenance
from tests.e2e.nats_tap import tapped
from tests.e2e.observed_work import leave_a_stream, observed_round, run_into_a_limit
from tests.e2e.prometheus_under_test import prometheus_of
from tests.e2e.promtail_files import promtail_fields, promtail_reads
from tests.e2e.stack_under_test import QUICK_METRICS, RunningStack, running_stack, server_folder, until
from tests.prometheus_files import DASHBOARDS, alert_queries, dashboard_queries, recording_queries

pytestmark = pytest.mark.timeout(600)


class OwnPostgres:
    """A Postgres that the test may stop and start."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self.process: ProcessRecord = server.start()

    def stop(self) -> None:
        self.server.stop(self.process)

    def start(self) -> None:
        self.process = self.server.start()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    with server_folder() as folder:
        own = OwnPostgres(EmbeddedPostgres(folder / "postgres", choose_port(0, set()), folder / "log" / "postgres.log"))
        yield own
        own.stop()


@pytest.fixture(scope="module")
def own_nats() -> Iterator[NatsServer]:
    with server_folder() as folder:
        server = NatsServer(folder)
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="module")
def stack(own_postgres: OwnPostgres, own_nats: NatsServer) -> Iterator[RunningStack]:
    servers = {"postgres_dsn": own_postgres.server.dsn(), "nats_url": own_nats.url}
    with running_stack("simulated", QUICK_METRICS, cache_verify_share="1", **servers) as running:
        yield running


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "sim-small", "messages": [{"role": "user", "content": f"{text} {time.time_ns()}"}], **fields}


async def test_status_names_the_own_servers(stack: RunningStack, own_nats: NatsServer) -> None:
    assert stack.info["nats"] == own_nats.url
    assert stack.info["ready"] is True


async def test_direct_and_debate_work(stack: RunningStack) -> None:
    async with stack.http() as http:
        for body in (ask("hello"), ask("hello", model="debate"), ask("hello", x_route="workflow")):
            response = await http.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["message"]["content"]


async def test_client_whose_body_comes_in_its_own_packet_may_leave(stack: RunningStack) -> None:
    """HAProxy with splicing did not see this one leave; the engine worked on for nobody."""
    body = json.dumps(ask("leave", model="sim-large", max_tokens=4000)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    place = urlsplit(stack.origin)
    async with tapped(stack.info["nats"]) as tap:
        with socket.create_connection((place.hostname or "", place.port or 0)) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(head)
            client.sendall(body)
            await until(lambda: any(e["type"] == "token" for es in tap.events.values() for e in es), 20, "a first token")
        events = await tap.whole_run(next(iter(tap.events)), timeout_s=20)
    assert events[-1]["reason"] == "cancelled"
    await stack.engines_idle(within_s=30)  # the answer would take a minute


async def test_twenty_megabytes_are_refused(stack: RunningStack) -> None:
    async with stack.http() as http:
        response = await http.post("/v1/chat/completions", content=b"{" + b" " * 20_000_000 + b"}")
        assert response.status_code == 413
        assert (await http.post("/v1/chat/completions", json=ask("after"))).status_code == 200


async def test_request_id_is_answered_once(stack: RunningStack) -> None:
    async with stack.http() as http:
        mine = await http.get("/v1/models", headers={"x-request-id": "mine-7"})
        assert mine.headers.get_list("x-request-id") == ["mine-7"]


async def test_identical_requests_share_one_execution(stack: RunningStack) -> None:
    body = ask("shared", model="sim-large", max_tokens=60)
    async with tapped(stack.info["nats"]) as tap, stack.http() as http:
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(30)))
        assert {a.status_code for a in answers} == {200}
        assert len({a.json()["choices"][0]["message"]["content"] for a in answers}) == 1
        executed = [t for t, events in tap.events.items() if len(events) > 10]
        assert len(executed) == 1


async def test_a_job_that_is_launched_from_the_page_runs_beside_it(stack: RunningStack) -> None:
    """With heavy_jobs: ray it is a Ray job: tests/e2e/redeployed."""
    run = await launch_maintenance(stack)
    assert run["status"] == "SUCCESS"
    assert BY_RAY not in run["tags"]


async def test_nats_away_direct_goes_on_workflow_says_503_and_all_heals(stack: RunningStack, own_nats: NatsServer) -> None:
    async with stack.http() as http:
        own_nats.kill()
        try:
            await _until_away(http, "nats")
            direct = await http.post("/v1/chat/completions", json=ask("no bus"))
            assert direct.status_code == 200
            streamed = await http.post("/v1/chat/completions", json=ask("no bus", stream=True))
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert streamed.headers["x-resume"] == "unavailable"
            workflow = await http.post("/v1/chat/completions", json=ask("no bus", model="debate"))
            assert workflow.status_code == 503
            assert workflow.json()["error"]["code"] == "unavailable"
            assert 1 <= int(workflow.headers["retry-after"]) <= 120
        finally:
            own_nats.start()
        await _until_ready(http)
        await until(lambda: _answers(http, ask("back", model="debate")), 30, "a debate after NATS came back")


async def test_postgres_away_unkeyed_direct_goes_on_keyed_says_503_and_all_heals(
    stack: RunningStack, own_postgres: OwnPostgres
) -> None:
    async with stack.http() as http:
        assert (await http.post("/v1/chat/completions", json=ask("warm"))).status_code == 200
        own_postgres.stop()
        try:
            await _until_away(http, "postgres")
            direct = await http.post("/v1/chat/completions", json=ask("no store"))
            assert direct.status_code == 200
            assert direct.headers["x-cache"] == "miss"
            keyed = await http.post("/v1/chat/completions", json=ask("no store"), headers={"Idempotency-Key": "k"})
            assert keyed.status_code == 503
            workflow = await http.post("/v1/chat/completions", json=ask("no store", model="debate"))
            assert workflow.status_code == 503
        finally:
            own_postgres.start()
        await _until_ready(http)
        body = ask("cached again")
        await until(lambda: _answers(http, body), 30, "a direct answer after Postgres came back")
        second = await http.post("/v1/chat/completions", json=body)
        assert second.headers["x-cache"] == "exact"
        await until(lambda: _answers(http, ask("back", model="debate")), 30, "a debate after Postgres came back")


async def test_every_query_of_dashboards_and_rules_has_data(stack: RunningStack, own_nats: NatsServer) -> None:
    """All but those of vLLM, which tests/e2e/test_real_engine.py asks."""
    own = [query for path in DASHBOARDS if path.stem != "aifactory-engines" for query in dashboard_queries(path)]
    asked = {metric for query in alert_queries() for metric in query.metrics if not metric.startswith("ray_vllm_")}
    async with stack.http() as http, prometheus_of(stack) as prometheus:
        await leave_a_stream(stack)
        await run_into_a_limit(stack)
        own_nats.kill()
        try:
            await _until_away(http, "nats")
            assert (await http.post("/v1/chat/completions", json=ask("unpublished"))).status_code == 200
        finally:
            own_nats.start()
        await _until_ready(http)
        await prometheus.all_have_data([*own, *recording_queries()], lambda: observed_round(http), within_s=240)
        await prometheus.all_known(asked)


async def test_logs_lie_where_promtail_reads_them(stack: RunningStack) -> None:
    async with stack.http() as http:
        response = await http.post("/v1/chat/completions", json=ask("logged", model="debate"))
        trace_id = response.headers["x-trace-id"]

    def settled() -> bool:
        lines = [line for line in promtail_reads(stack, "aifactory") if line.startswith("{")]
        of_run = [line for line in map(json.loads, lines) if line.get("trace_id") == trace_id]
        for line in of_run:
            assert promtail_fields() <= line.keys()
            assert datetime.fromisoformat(line["time"]).tzinfo is not None
        return any(line["message"] == "run settled" for line in of_run)

    await until(settled, 30, f"the end of {trace_id} in the logs")
    assert promtail_reads(stack, "serve")
    assert promtail_reads(stack, "servers")


async def _answers(http: httpx.AsyncClient, body: dict[str, Any]) -> bool:
    return (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def _until_ready(http: httpx.AsyncClient) -> None:
    async def ready() -> bool:
        return (await http.get("/readyz")).status_code == 200

    await until(ready, 90, "/readyz after the part came back")


async def _until_away(http: httpx.AsyncClient, part: str) -> None:
    async def away() -> bool:
        response = await http.get("/readyz")
        return response.status_code == 503 and response.json()["parts"][part] != "ok"

    await until(away, 60, f"/readyz naming {part}")
