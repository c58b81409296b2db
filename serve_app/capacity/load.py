"""Asks a running system over HTTP, at a set pace or a set concurrency, and notes when what came.

Open loop: requests are sent at their moments whether or not earlier ones were answered, and every latency counts from
the moment at which the request should have been sent. A system that stalls cannot slow its own measurement down.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Final

import httpx
import numpy as np
import orjson

from serve_app.capacity.figures import Figures, Gaps, Timing, quantile, summarise
from serve_app.capacity.replica_model import Level
from serve_app.capacity.workload import Pace, Workload, arrivals

# Nothing for this long ends a request; the gateway sends a comment every few seconds while it works.
_SILENCE_S: Final = 60.0
# How long the requests of a step may go on after its end; the rest is cut off and counts as failed.
_DRAIN_S: Final = 30.0
_ERRORS_KEPT: Final = 3
_AFTER_FAULT_S: Final = 0.2
_LENGTHS: Final = 0.3  # answers of a closed loop are up to this part shorter or longer


@dataclass(slots=True)
class _Watch:
    """One request while it is watched; monotonic seconds."""

    due: float
    sent: float = 0.0
    ended: float = 0.0
    marks: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    ok: bool = False

    def timing(self, start: float, now: float) -> Timing:
        first = self.marks[0] - start if self.marks else None
        return Timing(self.due - start, first, (self.ended or now) - start, len(self.marks), self.ok)


class Load:
    """A client of one API. `errors` counts what went wrong, by its text, bounded."""

    def __init__(self, http: httpx.AsyncClient, workload: Workload) -> None:
        self._http = http
        self._workload = workload
        self._asked = 0
        self._answer_s = 0.0
        self._random = Random(workload.seed)  # noqa: S311 - lengths of answers
        self.errors: Counter[str] = Counter()

    async def step(self, rate: float, pace: Pace) -> Figures:
        """One step of a sweep: Poisson arrivals at `rate` requests/s."""
        seconds = pace.seconds(rate)
        watches: list[_Watch] = []
        start = time.monotonic()
        try:
            async with asyncio.timeout(seconds + _DRAIN_S), asyncio.TaskGroup() as group:
                for moment in arrivals(rate, seconds, self._workload.seed):
                    watch = _Watch(start + float(moment))
                    await asyncio.sleep(max(0.0, watch.due - time.monotonic()))
                    watches.append(watch)
                    group.create_task(self._ask(watch, self._workload))
        except TimeoutError:
            self._note(f"not answered {_DRAIN_S:g} s after the step's end")
        now = time.monotonic()
        begin, end = pace.window(rate)
        late = quantile([watch.sent - watch.due for watch in watches if watch.sent], 0.95)
        gaps = _gaps(watches, start + begin, start + end)
        return summarise(rate, [watch.timing(start, now) for watch in watches], gaps, (begin, end), late_p95=late)

    async def level(self, clients: int, replicas: int, seconds: float, workload: Workload | None = None) -> Level:
        """`clients` at a time, each asking again as soon as it is answered; `seconds` count, from when each had one answer.

        They begin one after another and ask for answers of different lengths: clients in step with each other would
        meet queues that no real load makes.
        """
        asked = workload or self._workload
        watches: list[_Watch] = []
        warm: set[int] = set()
        window = (math.inf, math.inf)

        async def ask_again(client: int) -> None:
            nonlocal window
            await asyncio.sleep(self._answer_s * client / clients)
            while time.monotonic() < window[1]:
                watches.append(watch := _Watch(time.monotonic()))
                share = self._random.uniform(1 - _LENGTHS, 1 + _LENGTHS)
                await self._ask(watch, replace(asked, output_tokens=max(2, round(asked.output_tokens * share))))
                warm.add(client)
                if len(warm) == clients and math.isinf(window[0]):
                    window = (time.monotonic(), time.monotonic() + seconds)
                if not watch.ok:
                    await asyncio.sleep(_AFTER_FAULT_S)

        async with asyncio.TaskGroup() as group:
            for client in range(clients):
                group.create_task(ask_again(client))
        self._answer_s = quantile([watch.ended - watch.due for watch in watches if watch.ok], 0.5)
        return _level(watches, window, replicas)

    async def _ask(self, watch: _Watch, workload: Workload) -> None:
        """One request; what comes is noted on `watch`. Faults of the API count, they do not end the sweep."""
        self._asked += 1
        body = workload.body(self._asked)
        watch.sent = time.monotonic()
        try:
            async with self._http.stream("POST", "/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self._note(f"status {answer.status_code}: {answer.text[:200]}")
                    return
                async for line in answer.aiter_lines():
                    self._read(line, watch)
        # The others: a chunk that is not JSON, or of another shape than OpenAI's.
        except (httpx.HTTPError, ValueError, TypeError, AttributeError) as error:
            self._note(f"{type(error).__name__}: {error}")
        finally:
            watch.ended = time.monotonic()

    def _read(self, line: str, watch: _Watch) -> None:
        if not line.startswith("data:"):
            return
        payload = line.removeprefix("data:").strip()
        if payload == "[DONE]":
            watch.ok = bool(watch.marks)
            return
        chunk = orjson.loads(payload)
        if "error" in chunk:
            self._note(f"cut: {chunk['error'].get('message')}"[:200])
        if any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices", [])):
            watch.marks.append(time.monotonic())
        if chunk.get("usage"):
            watch.prompt_tokens = int(chunk["usage"].get("prompt_tokens") or 0)

    def _note(self, error: str) -> None:
        if error in self.errors or len(self.errors) < _ERRORS_KEPT:
            self.errors[error] += 1


@asynccontextmanager
async def connect(api: str, key: str, workload: Workload) -> AsyncIterator[Load]:
    """A load generator for the API at `api` (its base URL with /v1)."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(_SILENCE_S, pool=None)
    login = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=api, headers=login, limits=limits, timeout=timeout, trust_env=False) as http:
        yield Load(http, workload)


def _level(watches: Sequence[_Watch], window: tuple[float, float], replicas: int) -> Level:
    """What came within the window, monotonic seconds."""
    begin, end = window
    good = [watch for watch in watches if watch.ok]
    marks = [[mark for mark in watch.marks if begin <= mark < end] for watch in good]
    gaps = [np.diff(some) for some in marks if len(some) > 1]
    busy_s = sum(max(0.0, min(watch.ended, end) - max(watch.due, begin)) for watch in good)
    return Level(
        concurrency=max(1.0, busy_s / (end - begin) / replicas),
        first=[watch.marks[0] - watch.due for watch in good if begin <= watch.due and watch.marks[0] < end],
        steps=[float(some.mean()) for some in gaps],
        offsets=[float(offset) for some in gaps for offset in some - some.mean()],
        prompt_tokens=float(np.mean([watch.prompt_tokens for watch in good])) if good else 0.0,
    )


def _gaps(watches: Sequence[_Watch], begin: float, end: float) -> Gaps:
    """Times between tokens that came from `begin` to `end`."""
    found = [later - earlier for watch in watches for earlier, later in pairwise(watch.marks) if begin <= later < end]
    return Gaps(np.array(found), np.ones(len(found)))
