"""Dagster's web page, as a browser speaks to it."""

from typing import Any

import httpx

from tests.e2e.stack_under_test import RunningStack, until

BY_RAY = {"key": "launched_by", "value": "ray"}
_RUN = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status tags { key value } } } }"
_LAUNCH = """mutation { launchRun(executionParams: {mode: "default", selector:
  {repositoryLocationName: "aifactory", repositoryName: "__repository__", jobName: "cache_maintenance"}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


async def shown(stack: RunningStack, run_id: str) -> dict[str, Any]:
    """Status and tags of a run."""
    return await _ask(stack, _RUN, run=run_id)


async def launch_maintenance(stack: RunningStack) -> dict[str, Any]:
    """Launch the job `cache_maintenance`; status and tags of its run when it is over."""
    told = await _ask(stack, _LAUNCH)
    assert told["__typename"] == "LaunchRunSuccess", told
    return await ended(stack, told["run"]["runId"], within_s=300)


async def ended(stack: RunningStack, run_id: str, within_s: float) -> dict[str, Any]:
    """Status and tags of a run when Dagster has its end, which is a moment after its last step told of it."""

    async def over() -> bool:
        return (await shown(stack, run_id))["status"] in ("SUCCESS", "FAILURE", "CANCELED")

    await until(over, within_s, f"the end of Dagster's run {run_id}")
    return await shown(stack, run_id)


async def _ask(stack: RunningStack, query: str, **variables: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=stack.info["dagster"], timeout=60, trust_env=False) as http:
        told = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    assert "errors" not in told, told["errors"]
    [result] = told["data"].values()
    assert isinstance(result, dict)
    return result
