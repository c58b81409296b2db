"""A warm worker for tests: real Dagster, real Postgres; bus, queue and run log in memory, replicas scripted."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun

from dagster_project.resources import Embed
from dagster_project.running.pull_loop import PullLoop
from dagster_project.running.runner import DebateRunner
from dagster_project.running.takes import dagster_run_id
from dagster_project.warm.executor import StepHost
from serve_app.bus.memory import InMemoryEventBus, InMemoryRunQueue
from serve_app.events import ChoiceEnd, EventBody, FinishedEvent, RoleEvent, RunEvent, TokenEvent, Usage, UsageEvent
from serve_app.ports import ModelCard
from serve_app.runs import Question, Run, new_trace_id
from serve_app.settings import Settings
from serve_app.store.memory import InMemoryRunStore

WAIT_S = 40.0


@dataclass
class Script:
    """What a replica does with one call: waits, says the tokens, ends; or fails; or hangs after the tokens."""

    tokens: tuple[str, ...] = ("Paris",)
    wait_s: float = 0.0
    errors: list[Exception] = field(default_factory=list)  # one per try, before the first token
    hangs: bool = False
    names: str | None = None  # what a judge's choice says, told by the letter it has in this reading

    def says(self, body: dict[str, Any]) -> tuple[str, ...]:
        """The tokens of the reply to this request. A judge whose token is the text of an answer names its letter."""
        wanted = self.tokens if self.names is None else (self.names,)
        shown = re.findall(r"^Answer ([A-Z]):\n> (.*)$", str(body["messages"][-1]["content"]), re.MULTILINE)
        return tuple(next((letter for letter, text in shown if text == token), token) for token in wanted)


class ScriptedReplicas:
    """Answers by the request id: trace, then the task's label (or judge, writer), then marks such as r2 for a round.

    A script is named by its label, or by label and round: `A`, `A_r2`. The judge's tokens are the text of its choice.
    """

    def __init__(self, **scripts: Script) -> None:
        self.scripts = scripts
        self.calls: list[str] = []
        self.bodies: dict[str, dict[str, Any]] = {}
        self.open = self.most_open = 0
        self.first_call = 0.0
        self.log: Path | None = None  # a line for each call, for tests whose workers are processes of their own

    def cards(self) -> list[ModelCard]:
        return [ModelCard("small")]

    async def answers(self, timeout_s: float) -> bool:
        return True

    def completions(self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str) -> Any:
        raise AssertionError("a debate asks for chat completions only")

    async def stream(self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str) -> Any:
        call = request_id.partition("-")[2]
        self.first_call = self.first_call or time.perf_counter()
        self.calls.append(call)
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{call}\n")
        self.bodies[call] = body
        name, *marks = call.split("-")
        in_round = next((mark for mark in marks if mark.startswith("r")), "")
        script = self.scripts.get(f"{name}_{in_round}") or self.scripts.get(name, Script())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if script.errors:
                raise script.errors.pop(0)
            await asyncio.sleep(script.wait_s)
            yield RoleEvent()
            for done, token in enumerate(script.says(body), start=1):
                yield TokenEvent(text=token)
                yield UsageEvent(usage=Usage(prompt_tokens=10, completion_tokens=done, total_tokens=10 + done))
            if script.hangs:
                await asyncio.Event().wait()
            yield FinishedEvent(reason="stop", choices=(ChoiceEnd(finish_reason="stop"),))
        finally:
            self.open -= 1


class Stand:
    """A worker and its surroundings."""

    def __init__(self, settings: Settings, instance: DagsterInstance, replicas: ScriptedReplicas) -> None:
        self.settings = settings
        self.instance = instance
        self.replicas = replicas
        self.store = InMemoryRunStore()
        self.bus = InMemoryEventBus()
        self.queue = InMemoryRunQueue(ack_wait_s=0.5)
        self.embed: Embed | None = None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[PullLoop]:
        """A worker that pulls until the block ends."""
        host = StepHost(asyncio.get_running_loop(), steps=16, steps_per_run=self.settings.tasks_per_run)
        runner = await asyncio.to_thread(DebateRunner, self.instance, host, embed=self.embed, api_url="http://api/v1")
        await asyncio.to_thread(runner.warm_up)
        pulls = PullLoop(self.settings, store=self.store, bus=self.bus, queue=self.queue, replicas=self.replicas, runner=runner)
        await pulls.start()
        try:
            yield pulls
        finally:
            await pulls.close(0)
            host.close()

    async def submit(self, **question: Any) -> Run:
        """Claim a run and put it into the queue."""
        run = make_run(**question)
        assert (await self.store.claim(run, lease_s=30)).claimed
        await self.queue.submit(run)
        return run

    async def events(self, run: Run) -> list[RunEvent]:
        """All events of a run, up to `finished`."""
        async with asyncio.timeout(WAIT_S), self.bus.subscribe(run.trace_id) as events:
            return [event async for event in events]

    async def until_quiet(self, pulls: PullLoop) -> None:
        """Wait until the queue is empty and nothing is worked on."""
        async with asyncio.timeout(WAIT_S):
            while self.queue._runs or pulls._runs:
                await asyncio.sleep(0.01)

    async def dagster_run(self, run: Run, take: int = 1) -> DagsterRun:
        found = await asyncio.to_thread(self.instance.get_run_by_id, dagster_run_id(run.trace_id, run.attempt, take))
        assert found is not None
        return found


MODEL: dict[str, Any] = {"model": "small", "adapter": None, "system": None, "temperature": 0.0}
JUDGED: dict[str, Any] = {"rounds": 1, "strategy": "judge", "judge_model": "small", "judge_adapter": None}


def make_run(
    *, labels: str = "ABC", timeout_s: float = 60, drafts: bool = True, text: str = "Capital of France?", **debate: Any
) -> Run:
    """A run as a gateway makes it; `debate` replaces or adds fields of its specification."""
    question = Question(
        project="default",
        route="workflow",
        model="debate",
        adapter=None,
        messages=[{"role": "user", "content": f"{text} {new_trace_id()}"}],
        debate={"tasks": [{"task": label, **MODEL} for label in labels], "drafts": drafts, **JUDGED, **debate},
    )
    return Run(new_trace_id(), question.req_id, question.req_id, False, question, deadline=time.time() + timeout_s)


def bodies(events: list[RunEvent]) -> list[EventBody]:
    assert [e.seq for e in events] == list(range(len(events))), "seq has a hole"
    return [e.body for e in events]
