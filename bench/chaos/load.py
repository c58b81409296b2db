"""The mixed load: seeded, a few lanes wide, each lane asking one thing after the other."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.chaos.exchange import Exchange, exchange
from bench.chaos.ground import ENGINE, MODEL
from dagster_project.debate import DebateSpec, DebateTask, task_body
from serve_app.configured import DebateConfig
from serve_app.replicas.simulated_request import read_chat
from serve_app.replicas.simulated_text import write
from serve_app.runs import answer_params
from serve_app.settings import Settings

# What a lane asks, and how often.
KINDS = {"stream": 5, "whole": 4, "debate": 2, "keyed": 3, "keyed debate": 1, "identical": 2, "hot": 1, "leave": 3}
_KEY_TRIES = 12
_SUBJECTS = ("rivers", "bridges", "bees", "tides", "violins", "glaciers", "looms", "comets", "lighthouses", "orchards")


@dataclass
class Load:
    """Asks until told to stop. Everything asked and answered stands in `exchanges`."""

    http: httpx.AsyncClient
    seed: int
    lanes: int = 10
    pause_s: float = 0.3
    most_s: float = 120.0
    leave_tokens: int = 400  # of an answer that is left in the middle
    exchanges: list[Exchange] = field(default_factory=list)
    _number: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and what is in flight has ended."""
        async with asyncio.TaskGroup() as group:
            for lane in range(self.lanes):
                group.create_task(self._lane(random.Random(f"{self.seed} {lane}"), stop))

    async def once(self, kind: str, dice: random.Random) -> None:
        """One request (or one group of them) of this kind."""
        match kind:
            case "stream" | "whole":
                await self._ask(kind, self.question(dice, stream=kind == "stream"))
            case "debate":
                await self._ask(kind, self.question(dice, model="debate", stream=dice.random() < 0.5))
            case "keyed" | "keyed debate":
                model = "debate" if "debate" in kind else MODEL
                body = self.question(dice, model=model, mode="use" if dice.random() < 0.3 else "refresh")
                await self.keyed(kind, body, f"key-{self.seed}-{self._number}")
            case "identical":
                body = self.question(dice, stream=True, mode="refresh")
                await asyncio.gather(*(self._ask(kind, {**body, "stream": dice.random() < 0.5}) for _ in range(3)))
            case "hot":
                # A few questions that come again and again: the cache.
                body = self.question(dice, mode="use")
                body["messages"] = [{"role": "user", "content": f"Which {dice.choice(_SUBJECTS)} matter most?"}]
                await self._ask(kind, body)
            case "leave":
                await self.leave(dice, dice.choice(("stream", "whole", "debate")))

    async def long_stream(self, dice: random.Random, tokens: int) -> Exchange:
        """A stream of so many tokens, 15 ms each."""
        return await self._ask("stream", {**self.question(dice, stream=True), "max_tokens": tokens})

    async def leave(self, dice: random.Random, what: str) -> None:
        """Ask and go away in the middle."""
        model = "debate" if what == "debate" else MODEL
        body = self.question(dice, model=model, stream=what == "stream" or dice.random() < 0.5 < (what == "debate"))
        await self._ask(f"leave {what}", {**body, "max_tokens": self.leave_tokens}, leave_after_s=dice.uniform(0.05, 1.5))

    async def keyed(self, kind: str, body: dict[str, Any], key: str) -> Exchange:
        """Ask under a key as an SDK does: again, with the same key, until there is an answer; then once more."""
        dice = random.Random(key)
        for attempt in range(_KEY_TRIES):
            made = await self._ask(kind, body, key=key)
            if made.end == "done":
                return await self._ask(kind, body, key=key) if dice.random() < 0.5 else made
            await asyncio.sleep(dice.uniform(0.5, 1.0) * min(4.0, 0.5 * 2**attempt))
        return made

    def question(
        self, dice: random.Random, *, model: str = MODEL, stream: bool = False, mode: str | None = None
    ) -> dict[str, Any]:
        """A request body that nobody else sends."""
        self._number += 1
        text = f"{self._number}-{dice.randrange(10**9)}: tell me about {dice.choice(_SUBJECTS)}"
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
        return {**body, "x_cache": {"mode": mode or dice.choice(("refresh", "bypass"))}}

    async def _lane(self, dice: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.once(dice.choices(list(KINDS), list(KINDS.values()))[0], dice)
            await asyncio.sleep(dice.uniform(0.5, 1.5) * self.pause_s)

    async def _ask(self, kind: str, body: dict[str, Any], **how: Any) -> Exchange:
        made = await exchange(self.http, kind, body, most_s=self.most_s, **how)
        self.exchanges.append(made)
        return made


def expected_texts(body: dict[str, Any]) -> set[str]:
    """What the simulated engine says to this request: one text, or one of the debaters' texts."""
    params, messages = answer_params(body), body["messages"]
    if body["model"] != "debate":
        asks = [{**params, "messages": messages}]
    else:
        preset: DebateConfig = Settings.model_fields["debate"].get_default(call_default_factory=True)
        tasks = [DebateTask(task=t.task, model=MODEL, system=t.system, temperature=t.temperature) for t in preset.tasks]
        spec = DebateSpec(tasks=tuple(tasks), judge_model=MODEL)
        asks = [task_body(spec, task, messages, params) for task in tasks]
    return {"".join(write(read_chat(ask), ENGINE, 0).pieces) for ask in asks}
