"""The buttons of Dagster's web page, pressed through its GraphQL: a real webserver beside a real worker."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from dagster_project.jobs import debate_job
from dagster_project.running.takes import dagster_run_id
from dagster_project.sweep_job import sweep_schedule
from dagster_project.warm.instance import open_instance
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.local.dagster_home import DagsterUi, write_home
from serve_app.local.ports import choose_port
from serve_app.local.processes import child_environment, end, find_all, is_alive, last_lines
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from tests.contracts.conftest import NatsServer, own_nats  # noqa: F401 - a fixture
from tests.fault.worker_process import Surroundings, open_worker
from tests.integration.dagster_stand import Script, ScriptedReplicas, make_run

START_S = 90.0
WAIT_S = 60.0

TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename ... on TerminateRunSuccess { run { status } }
  ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
LAUNCH = """mutation($job: String!) { launchRun(executionParams: {mode: "default", selector:
  {repositoryLocationName: "aifactory", repositoryName: "__repository__", jobName: $job}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = "query($run: ID!) { runOrError(runId: $run) { __typename ... on Run { status } } }"
SCHEDULES = """{ schedulesOrError(repositorySelector: {repositoryLocationName: "aifactory", repositoryName: "__repository__"}) {
  ... on Schedules { results { name scheduleState { status } } } } }"""


class Page:
    """The webserver as a browser speaks to it."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False)

    async def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = (await self._http.post("/graphql", json={"query": query, "variables": variables})).json()
        assert "errors" not in answer, answer["errors"]
        [result] = answer["data"].values()
        assert isinstance(result, dict)
        return result

    async def close(self) -> None:
        await self._http.aclose()


@pytest.fixture
def ui_settings(postgres_dsn: str, own_nats: NatsServer, tmp_path: Path) -> Settings:  # noqa: F811 - the fixture
    return Settings(
        config="simulated",
        state_dir=tmp_path,
        postgres_dsn=postgres_dsn,
        nats_url=own_nats.url,
        lease_s=6,
        queue_ack_wait_s=3,
        tasks_per_run=4,
    )


@pytest.fixture
def ui_instance(ui_settings: Settings) -> Iterator[DagsterInstance]:
    made = open_instance(ui_settings)
    yield made
    made.dispose()


@pytest.fixture
async def page(ui_settings: Settings, ui_instance: DagsterInstance) -> AsyncIterator[Page]:
    """The webserver, as the stack starts it."""
    home = write_home(ui_settings)
    assert (home / "settings.json").stat().st_mode & 0o077 == 0, "it holds passwords"
    env = child_environment({"DAGSTER_HOME": str(home)}, mark=home)
    ui = DagsterUi(home, "127.0.0.1", choose_port(0, set()), ui_settings.state_dir, env)
    started = []
    made = Page(ui.url)
    try:
        started.append(ui.launch_web())
        async with asyncio.timeout(START_S):
            while not ui._answers():
                assert is_alive(started[0]), last_lines(ui.web_log)
                await asyncio.sleep(0.1)
        yield made
    finally:
        # First the processes: an interrupt may end this block at its next await. The code servers and the launched runs
        # carry the mark and share the session; one that ignores the signal is killed.
        end(find_all(home, leaders=started), grace_s=10, first_signal=signal.SIGTERM)
        await made.close()
        assert find_all(home, leaders=started) == []


async def test_terminate_stops_a_debate_at_once(ui_settings: Settings, ui_instance: DagsterInstance, page: Page) -> None:
    replicas = ScriptedReplicas(**{label: Script(("one ",), hangs=True) for label in "ABC"})
    async with AsyncExitStack() as stack:
        around = Surroundings(ui_settings, "worker")
        await around.open(stack)
        await open_worker(around, replicas, stack)
        run = make_run()
        await around.store.claim(run, lease_s=waiting_lease_s(run, ui_settings.lease_s))
        await around.queue.submit(run)
        seen = 0
        async with asyncio.timeout(WAIT_S), around.bus.subscribe(run.trace_id) as events:
            async for event in events:
                seen += isinstance(event.body, TokenEvent)
                if seen == 3 and isinstance(event.body, TokenEvent):
                    pressed = time.monotonic()
                    told = await page.ask(TERMINATE, run=dagster_run_id(run.trace_id, 1))
                    assert told["__typename"] == "TerminateRunSuccess", told
                end_event = event.body
            took = time.monotonic() - pressed
        assert isinstance(end_event, FinishedEvent)
        assert end_event.reason == "cancelled"
        assert took < 10  # the debaters would hang until the deadline, a minute later
        async with asyncio.timeout(WAIT_S):
            while (await _status(ui_instance, run.trace_id)) is not DagsterRunStatus.CANCELED:
                await asyncio.sleep(0.05)
        record = await around.store.find(run.trace_id)
        assert record is not None
        assert record.status is RunStatus.CANCELLED
        assert record.usage is not None
        assert record.usage["completion_tokens"] == 3
        assert "Dagster UI" in (record.error or {})["message"]
        assert replicas.open == 0
        again = await page.ask(TERMINATE, run=dagster_run_id(run.trace_id, 1))
        assert again["__typename"] == "TerminateRunFailure"


async def test_a_debate_is_not_launched_from_the_page_and_the_sweep_is(ui_instance: DagsterInstance, page: Page) -> None:
    refused = await page.ask(LAUNCH, job="debate")
    assert refused["__typename"] == "PythonError"
    assert "x_route" in refused["message"]
    launched = await page.ask(LAUNCH, job="sweep")
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    async with asyncio.timeout(START_S):
        while (status := (await page.ask(STATUS, run=run_id))["status"]) not in ("SUCCESS", "FAILURE"):
            await asyncio.sleep(0.2)
    assert status == "SUCCESS"
    schedules = {each["name"]: each["scheduleState"]["status"] for each in (await page.ask(SCHEDULES))["results"]}
    assert schedules[sweep_schedule.name] == "STOPPED"  # the workers and gateways sweep already


async def test_terminate_is_kept_in_the_log_while_nats_is_away(
    ui_settings: Settings,
    ui_instance: DagsterInstance,
    page: Page,
    own_nats: NatsServer,  # noqa: F811 - the fixture
) -> None:
    async with AsyncExitStack() as stack:
        around = Surroundings(ui_settings, "test")
        await around.open(stack)
        run = make_run()
        await around.store.claim(run, lease_s=60)
        tags = {"trace_id": run.trace_id}
        shown = ui_instance.create_run_for_job(job_def=debate_job(), status=DagsterRunStatus.STARTED, tags=tags)
        own_nats.kill()
        told = await page.ask(TERMINATE, run=shown.run_id)
        assert told["__typename"] == "TerminateRunSuccess", told
        record = await around.store.find(run.trace_id)
        assert record is not None
        assert "Dagster UI" in (record.cancel_reason or "")
        assert await _status(ui_instance, run.trace_id) is DagsterRunStatus.STARTED, "its worker says when it has stopped"


async def _status(instance: DagsterInstance, trace_id: str) -> DagsterRunStatus:
    [run] = await asyncio.to_thread(instance.get_runs, RunsFilter(tags={"trace_id": trace_id}))
    return run.status
