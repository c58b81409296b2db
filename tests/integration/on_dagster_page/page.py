"""Dagster's web page: a webserver as the stack starts it, and what a browser says to it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from serve_app.local.dagster_home import DagsterUi
from serve_app.local.ports import choose_port
from serve_app.local.processes import child_environment, end, find_all, is_alive, last_lines

START_S = 90.0
WAIT_S = 60.0

TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename ... on TerminateRunSuccess { run { status } }
  ... on TerminateRunFailure { message } ... on PythonError { message } } }"""


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


@contextmanager
def serving(home: Path, logs: Path) -> Iterator[DagsterUi]:
    """A webserver over the home that `write_home` wrote, until the block ends; nothing it started is left then."""
    env = child_environment({"DAGSTER_HOME": str(home)}, mark=home)
    ui = DagsterUi(home, "127.0.0.1", choose_port(0, set()), logs, env)
    started = []
    try:
        started.append(ui.launch_web())
        deadline = time.monotonic() + START_S
        while not ui._answers():
            assert is_alive(started[0]), last_lines(ui.web_log)
            assert time.monotonic() < deadline, f"no answer in {START_S:g} s: {last_lines(ui.web_log)}"
            time.sleep(0.1)
        yield ui
    finally:
        # The code servers and the launched runs carry the mark and share the session; one that ignores the signal is
        # killed.
        end(find_all(home, leaders=started), grace_s=10, first_signal=signal.SIGTERM)
        assert find_all(home, leaders=started) == []
