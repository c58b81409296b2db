"""Dagster's web page: code server and web server as the stack starts them, and what a browser says to it."""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from serve_app.local.dagster_home import DagsterUi, code_socket, write_home
from serve_app.local.ports import choose_port
from serve_app.local.processes import child_environment, end, find_all, is_alive, last_lines
from serve_app.settings import Settings

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
def serving(settings: Settings, logs: Path) -> Iterator[DagsterUi]:
    """The page over a home of its own, until the block ends; nothing that was started is left then."""
    home = write_home(settings)
    env = child_environment({"DAGSTER_HOME": str(home)}, mark=home)
    ui = DagsterUi(home, "127.0.0.1", choose_port(0, set()), logs, env, code_socket(settings.state_dir))
    started = []
    try:
        started.append(ui.launch_code_server())
        ui.wait_for_code(started[0], START_S)
        started.append(ui.launch_web())
        deadline = time.monotonic() + START_S
        while not ui._answers():
            assert is_alive(started[1]), last_lines(ui.web_log)
            assert time.monotonic() < deadline, f"no answer in {START_S:g} s: {last_lines(ui.web_log)}"
            time.sleep(0.1)
        yield ui
    finally:
        # The launched runs carry the mark and share the code server's session; one that ignores the signal is killed.
        end(find_all(home, leaders=started), grace_s=10, first_signal=signal.SIGTERM)
        assert find_all(home, leaders=started) == []
        shutil.rmtree(ui.socket.parent)
