"""`aifactory ingest`: launch Dagster's job `ingest` on the running stack, wait for it, and tell what it did.

The job runs where the Dagster UI would run it, not in this command: so each ingestion is a run in Dagster's history with
its lineage and its checks, the UI and the command do exactly the same, and the command needs neither Dagster nor the
embedding model. That costs the seconds that a process of Dagster takes to start.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

JOB: Final = "ingest"
_REPOSITORY: Final = {"repositoryLocationName": "aifactory", "repositoryName": "__repository__"}
_PARTITIONS: Final = "projects"
_ANSWER_S: Final = 30.0
_ASK_EVERY_S: Final = 0.5
_ENDED: Final = ("SUCCESS", "FAILURE", "CANCELED")

_ADD_PROJECT = """mutation($repository: RepositorySelector!, $partitions: String!, $project: String!) {
  addDynamicPartition(repositorySelector: $repository, partitionsDefName: $partitions, partitionKey: $project) {
    __typename ... on UnauthorizedError { message } ... on PythonError { message } } }"""
_LAUNCH = """mutation($job: JobOrPipelineSelector!, $config: RunConfigData!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {mode: "default", selector: $job, runConfigData: $config, executionMetadata: {tags: $tags}}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
_STATUS = "query($run: ID!) { runOrError(runId: $run) { __typename ... on Run { status } } }"
_TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
_OUTCOME = """query($run: ID!) { runOrError(runId: $run) { __typename ... on Run {
  assetMaterializations { assetKey { path } metadataEntries { label
    ... on IntMetadataEntry { intValue } ... on JsonMetadataEntry { jsonString } } }
  eventConnection(limit: 1000) { events {
    ... on ExecutionStepFailureEvent { error { message } failureMetadata { description } }
    ... on RunFailureEvent { message } } } } } }"""


class IngestError(RuntimeError):
    """The job could not be launched, or failed."""


@dataclass
class Ingested:
    """What a run of the job did. `faults` maps files that could not be read to the reason."""

    run_id: str
    documents: dict[str, int] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line."""
        done, made = self.documents, self.chunks
        return (
            f"{done['added']} added, {done['changed']} changed, {done['unchanged']} unchanged, {done['removed']} removed, "
            f"{done['bad']} bad; {made['chunks_embedded']} chunks embedded; "
            f"the project has {made['documents']} documents, {made['chunks']} chunks"
        )


def ingest(dagster: str, path: Path, project: str, timeout_s: float, *, allow_empty: bool = False) -> Ingested:
    """Run the job for one project and wait until it has ended. `dagster` is the address of its UI.

    Raises IngestError; after `timeout_s` the job goes on without us. Interrupted, it ends the job.
    """
    if not path.exists():
        raise IngestError(f"{path} does not exist: name a folder of texts, Markdown, HTML and PDF files, or one such file")
    with httpx.Client(base_url=dagster, timeout=_ANSWER_S, trust_env=False) as http:
        page = _Page(http)
        run_id = _launch(page, path.resolve(), project, allow_empty)
        try:
            status = _wait(page, run_id, timeout_s)
        except KeyboardInterrupt:
            page.ask(_TERMINATE, run=run_id)
            raise
        return _outcome(page, run_id, status)


class _Page:
    """Dagster's webserver, asked through GraphQL."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        try:
            answer = self._http.post("/graphql", json={"query": query, "variables": variables}).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            told = str(error) or type(error).__name__
            raise IngestError(f"Dagster at {self._http.base_url} does not answer ({told}): see `aifactory status`") from error
        if answer.get("errors"):
            raise IngestError(f"Dagster refused: {answer['errors'][0].get('message')}")
        [result] = answer["data"].values()
        return dict(result)


def _launch(page: _Page, path: Path, project: str, allow_empty: bool) -> str:
    added = page.ask(_ADD_PROJECT, repository=_REPOSITORY, partitions=_PARTITIONS, project=project)
    if added["__typename"] not in ("AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError"):
        raise IngestError(f"project {project!r} cannot be a partition in Dagster: {added.get('message', added['__typename'])}")
    launched = page.ask(
        _LAUNCH,
        job={**_REPOSITORY, "jobName": JOB},
        config={"ops": {"documents": {"config": {"path": str(path), "allow_empty": allow_empty}}}},
        tags=[{"key": "dagster/partition", "value": project}, {"key": "project", "value": project}],
    )
    if launched["__typename"] != "LaunchRunSuccess":
        faults = "; ".join(fault["message"] for fault in launched.get("errors", []))
        told = launched.get("message") or faults or launched["__typename"]
        raise IngestError(f"Dagster did not launch the job {JOB}: {told}")
    return str(launched["run"]["runId"])


def _wait(page: _Page, run_id: str, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        status = str(page.ask(_STATUS, run=run_id).get("status"))
        if status in _ENDED:
            return status
        if time.monotonic() > deadline:
            raise IngestError(f"run {run_id} is {status} after {timeout_s:g} s; it goes on, watch it in Dagster's UI")
        time.sleep(_ASK_EVERY_S)


def _outcome(page: _Page, run_id: str, status: str) -> Ingested:
    told = page.ask(_OUTCOME, run=run_id)
    if status != "SUCCESS":
        raise IngestError(f"run {run_id} ended as {status}: {_cause(told)}")
    outcome = Ingested(run_id)
    for made in told["assetMaterializations"]:
        entries = {entry["label"]: entry for entry in made["metadataEntries"]}
        counts = {label: entry["intValue"] for label, entry in entries.items() if entry.get("intValue") is not None}
        if made["assetKey"]["path"] == ["documents"]:
            outcome.documents = counts
            outcome.faults = json.loads(entries["faults"]["jsonString"])
        else:
            outcome.chunks = counts
    return outcome


def _cause(told: dict[str, Any]) -> str:
    """The first failure that says why; a step says more than the run does."""
    events = [event for event in told["eventConnection"]["events"] if event]
    for event in events:
        described = (event.get("failureMetadata") or {}).get("description") or (event.get("error") or {}).get("message")
        if described:
            return str(described).strip()
    return next((str(event["message"]) for event in events if event.get("message")), "Dagster's UI has the log")
