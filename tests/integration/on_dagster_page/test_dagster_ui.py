"""The buttons of Dagster's web page, pressed through its GraphQL: a real webserver beside a real worker."""

import asyncio
import time
from contextlib import AsyncExitStack

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from dagster_project.jobs import debate_job
from dagster_project.running.takes import dagster_run_id
from dagster_project.sweep_job import sweep_schedule
from serve_app.events import FinishedEvent, TokenEvent
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from tests.contracts.conftest import NatsServer
from tests.fault.worker_process import Surroundings, open_worker
from tests.integration.dagster_stand import Script, ScriptedReplicas, make_run
from tests.integration.on_dagster_page.page import START_S, TERMINATE, WAIT_S, Page

LAUNCH = """mutation($job: String!) { launchRun(executionParams: {mode: "default", selector:
  {repositoryLocationName: "aifactory", repositoryName: "__repository__", jobName: $job}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = "query($run: ID!) { runOrError(runId: $run) { __typename ... on Run { status } } }"
SCHEDULES = """{ schedulesOrError(repositorySelector: {repositoryLocationName: "aifactory", repositoryName: "__repository__"}) {
  ... on Schedules { results { name scheduleState { status } } } } }"""


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


async def test_a_debate_is_not_launched_from_the_page_and_the_sweep_is(page: Page) -> None:
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
    ui_settings: Settings, ui_instance: DagsterInstance, page: Page, own_nats: NatsServer
) -> None:
    async with AsyncExitStack() as stack:
        around = Surroundings(ui_settings, "test")
        await around.open(stack)
        run = make_run()
        await around.store.claim(run, lease_s=60)
        tags = {"trace_id": run.trace_id}
        shown = ui_instance.create_run_for_job(job_def=debate_job(), status=DagsterRunStatus.STARTED, tags=tags)
        stack.push_async_callback(asyncio.to_thread, ui_instance.delete_run, shown.run_id)  # nobody will end it
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
