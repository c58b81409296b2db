"""A debate that is filled in and launched on Dagster's web page, pressed through its GraphQL."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from dagster_project.jobs import debate_job
from dagster_project.launching.ui_debate import asked_in
from serve_app.errors import BadRequest, NotFound
from serve_app.events import FinishedEvent, RunEvent, TokenEvent
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from tests.fault.worker_process import Surroundings, open_worker
from tests.integration.dagster_stand import Script, ScriptedReplicas
from tests.integration.on_dagster_page.page import TERMINATE, Page

WAIT_S = 90.0
LAUNCH = """mutation($config: RunConfigData!, $tags: [ExecutionTag!]) { launchRun(executionParams: {mode: "default",
  runConfigData: $config, executionMetadata: {tags: $tags}, selector:
  {repositoryLocationName: "aifactory", repositoryName: "__repository__", jobName: "debate"}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
AGAIN = """mutation($run: String!) { launchRunReexecution(reexecutionParams: {parentRunId: $run, strategy: ALL_STEPS}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


def filled_in(question: str | None = "Capital of France?", **fields: Any) -> dict[str, Any]:
    config = fields if question is None else {"question": question, **fields}
    return {"ops": {"plan": {"config": config}}}


async def run_of(instance: DagsterInstance, run_id: str) -> DagsterRun:
    run = await asyncio.to_thread(instance.get_run_by_id, run_id)
    assert run is not None
    return run


async def heard(around: Surroundings, trace_id: str) -> list[RunEvent]:
    async with asyncio.timeout(WAIT_S), around.bus.subscribe(trace_id) as events:
        return [event async for event in events]


async def launched(page: Page, instance: DagsterInstance, config: dict[str, Any]) -> DagsterRun:
    told = await page.ask(LAUNCH, config=config)
    assert told["__typename"] == "LaunchRunSuccess", told
    return await run_of(instance, told["run"]["runId"])


async def test_a_debate_is_launched_and_executed_as_that_very_run(
    ui_settings: Settings, ui_instance: DagsterInstance, page: Page
) -> None:
    replicas = ScriptedReplicas(A=Script(("Lyon",)), B=Script(("Paris",)), C=Script(("Rome",)), judge=Script(("B",)))
    async with AsyncExitStack() as stack:
        around = Surroundings(ui_settings, "worker")
        await around.open(stack)
        await open_worker(around, replicas, stack)
        run = await launched(page, ui_instance, filled_in(project="team"))
        trace_id = run.tags["trace_id"]
        events = await heard(around, trace_id)
        assert [event.seq for event in events] == list(range(len(events)))
        assert any(isinstance(event.body, TokenEvent) and event.body.task == "A" for event in events)
        assert isinstance(end := events[-1].body, FinishedEvent)
        assert end.reason == "stop", end
        record = await around.store.find(trace_id, project="team")
        assert record is not None
        assert record.status is RunStatus.SUCCEEDED
        assert record.answer is not None
        assert record.answer.text in ("Lyon", "Paris", "Rome")
        assert record.dagster_run_id == run.run_id
        async with asyncio.timeout(WAIT_S):
            while not (run := await run_of(ui_instance, run.run_id)).is_finished:
                await asyncio.sleep(0.05)
        assert run.status is DagsterRunStatus.SUCCESS
        assert run.tags["req_id"] == record.req_id
        assert run.tags["project"] == "team"

        # Executed again from the page: another run in the log, because the question is at hand.
        told = await page.ask(AGAIN, run=run.run_id)
        assert told["__typename"] == "LaunchRunSuccess", told
        again = await run_of(ui_instance, told["run"]["runId"])
        assert again.tags["trace_id"] != trace_id
        end = (await heard(around, again.tags["trace_id"]))[-1].body
        assert isinstance(end, FinishedEvent)
        assert end.reason == "stop", end


async def test_a_launch_without_question_or_with_a_wrong_model_says_what_to_do(ui_instance: DagsterInstance, page: Page) -> None:
    tag = {"key": "test", "value": uuid4().hex}  # the tests of a session share Dagster's database
    for config, hint in (
        (filled_in(None, rounds=2), "ops.plan.config.question"),
        (filled_in(judge_model="nobody"), "known models"),
    ):
        told = await page.ask(LAUNCH, config=config, tags=[tag])
        assert told["__typename"] == "PythonError", told
        assert hint in told["message"]
    refused = await asyncio.to_thread(ui_instance.get_runs, RunsFilter(tags={tag["key"]: tag["value"]}))
    assert [run.status for run in refused] == [DagsterRunStatus.FAILURE] * 2
    misspelt = await page.ask(LAUNCH, config=filled_in(round=2))
    assert misspelt["__typename"] == "RunConfigValidationInvalid", misspelt


async def test_a_launched_debate_that_no_worker_has_taken_is_terminated(
    ui_settings: Settings, ui_instance: DagsterInstance, page: Page
) -> None:
    async with AsyncExitStack() as stack:
        around = Surroundings(ui_settings, "worker")
        await around.open(stack)
        run = await launched(page, ui_instance, filled_in())
        told = await page.ask(TERMINATE, run=run.run_id)
        assert told["__typename"] == "TerminateRunSuccess", told
        replicas = ScriptedReplicas()
        await open_worker(around, replicas, stack)
        end = (await heard(around, run.tags["trace_id"]))[-1].body
        assert isinstance(end, FinishedEvent)
        assert end.reason == "cancelled"
        assert replicas.calls == []
        async with asyncio.timeout(WAIT_S):
            while (await run_of(ui_instance, run.run_id)).status is not DagsterRunStatus.CANCELED:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("config", "error", "hint"),
    [
        ({}, BadRequest, "question"),
        (filled_in("  "), BadRequest, "question"),
        (filled_in(timeout_s=0.0), BadRequest, "timeout_s"),
        (filled_in(rounds=4), BadRequest, "rounds"),
        (filled_in(tasks=[{"task": "A"}]), BadRequest, "tasks"),
        (filled_in(tasks=[{"task": "A"}, {"task": "B", "model": "nobody"}]), NotFound, "sim-small"),
    ],
)
def test_what_is_filled_in_is_checked_as_the_api_does(config: dict[str, Any], error: type[Exception], hint: str) -> None:
    settings = Settings(config="simulated")
    with DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(job_def=debate_job(), run_config=config)
        with pytest.raises(error, match=hint):
            asked_in(run, settings)


def test_what_is_left_out_comes_from_the_preset() -> None:
    settings = Settings(config="simulated")
    with DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(job_def=debate_job(), run_config=filled_in(strategy="vote", rounds=2, timeout_s=7.0))
        asked = asked_in(run, settings)
    assert asked.dagster_run_id == run.run_id
    assert asked.question.debate is not None
    assert [task["task"] for task in asked.question.debate["tasks"]] == [task.task for task in settings.debate.tasks]
    assert (asked.question.debate["strategy"], asked.question.debate["rounds"]) == ("vote", 2)
    assert asked.question.project == "default"
    assert asked.keyed
    assert 6 < asked.seconds_left <= 7
