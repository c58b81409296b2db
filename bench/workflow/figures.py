"""The measurements that a client of the API can make. Each warms up first, and gives seconds."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from bench.chaos.eyes import Eyes
from bench.workflow.ground import MODELS, Ground, debate_of

_PATH: Final = "/v1/chat/completions"
_WARM_UP: Final = 3
_IDLE_S: Final = 30.0


@dataclass
class Seen:
    """A stream as the client saw it: moments on the monotonic clock."""

    began: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last_draft: float = 0.0
    ended: float = 0.0
    cut: bool = False  # it ended with an error


async def read(http: httpx.AsyncClient, body: dict[str, Any], started: asyncio.Future[str] | None = None) -> Seen:
    """Ask for a stream and read it to its end. `started` gets the trace_id at the first token."""
    seen = Seen()
    async with http.stream("POST", _PATH, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk, now = json.loads(line[6:]), time.perf_counter()
            seen.cut = seen.cut or "error" in chunk
            delta = chunk["choices"][0]["delta"] if chunk.get("choices") else {}
            if delta.get("content") or delta.get("reasoning_content"):
                seen.first = seen.first or now
                if delta.get("reasoning_content"):
                    seen.last_draft = now
                if started is not None and not started.done():
                    started.set_result(response.headers["x-trace-id"])
    seen.ended = time.perf_counter()
    return seen


def fresh_question(number: int) -> str:
    """A text that was never asked before."""
    return f"Question {number} at {time.time_ns()}?"


async def first_tokens(ground: Ground, rounds: int, *, warm_up: int = _WARM_UP) -> list[float]:
    """From the request to the first debater's token, less the replica's own time to it, one debate at a time."""
    own_s = MODELS["prompt"].ttft_ms / 1000
    taken = []
    for number in range(-warm_up, rounds):
        seen = await read(ground.http, debate_of("prompt", fresh_question(number)))
        if number >= 0:
            taken.append(seen.first - seen.began - own_s)
    return taken


async def task_ratios(ground: Ground, rounds: int) -> list[float]:
    """From the request to the last draft's last token, over the slowest of the same three prompts asked for alone."""
    ratios = []
    for number in range(-1, rounds):
        question = fresh_question(number)
        alone = []
        for _ in "ABC":
            plain = {"model": "steady", "messages": [{"role": "user", "content": question}], "x_cache": {"mode": "bypass"}}
            one = await read(ground.http, plain)
            alone.append(one.ended - one.began)
        together = await read(ground.http, debate_of("steady", question))
        if number >= 0:
            ratios.append((together.last_draft - together.began) / max(alone))
    return ratios


async def ask(http: httpx.AsyncClient, number: int) -> None:
    """A whole debate on replicas that answer at once with one token."""
    answer = await http.post(_PATH, json=debate_of("nothing", fresh_question(number)))
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text}")


_TERMINATE: Final = """mutation($run: String!) { terminateRun(runId: $run) { __typename
  ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
_STATUS: Final = "query($run: ID!) { runOrError(runId: $run) { __typename } }"


async def terminations(ground: Ground, rounds: int) -> list[float]:
    """From the press of Terminate to a stream that has ended with an error and engines that are idle."""
    taken = []
    async with AsyncExitStack() as opened:
        web = httpx.AsyncClient(base_url=ground.stack.info["dagster"], timeout=60, trust_env=False)
        page = await opened.enter_async_context(web)
        eyes = await Eyes.open(ground.state, opened)
        for number in range(-1, rounds):
            taken.append(await _terminate(ground.http, page, eyes, number))
    return taken[1:]


async def _terminate(http: httpx.AsyncClient, page: httpx.AsyncClient, eyes: Eyes, number: int) -> float:
    started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(4 * _IDLE_S), asyncio.TaskGroup() as group:
        reading = group.create_task(read(http, debate_of("steady", fresh_question(number), max_tokens=4000), started))
        run_id = await _dagster_run(http, await started)
        await page.post("/graphql", json={"query": _STATUS, "variables": {"run": run_id}})  # the page has been opened
        pressed = time.perf_counter()
        idle = group.create_task(_until_idle(eyes))
        told = (await page.post("/graphql", json={"query": _TERMINATE, "variables": {"run": run_id}})).json()
        result = told.get("data", {}).get("terminateRun", {})
        if result.get("__typename") != "TerminateRunSuccess":
            raise RuntimeError(f"Terminate was refused: {told}")
    seen = reading.result()
    if not seen.cut:
        raise RuntimeError("the stream of a terminated debate ended as if it were whole")
    return max(seen.ended, idle.result()) - pressed


async def _dagster_run(http: httpx.AsyncClient, trace_id: str) -> str:
    while True:
        run_id = (await http.get(f"/v1/runs/{trace_id}")).json().get("dagster_run_id")
        if run_id:
            return str(run_id)
        await asyncio.sleep(0.01)


async def _until_idle(eyes: Eyes) -> float:
    async with asyncio.timeout(_IDLE_S):
        while await eyes.busy():  # noqa: ASYNC110 - the engines are another process
            await asyncio.sleep(0.01)
    return time.perf_counter()
