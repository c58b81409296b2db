"""A replica that pretends, for tests and planning."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from ray import serve

from serve_app.configured import FaultConfig, SimulatedConfig
from serve_app.errors import BadRequest
from serve_app.replicas.batches import SendsBatches
from serve_app.replicas.faults import FaultPlan, spoilt
from serve_app.replicas.faults import Item as SentItem
from serve_app.replicas.probe import hook_answer
from serve_app.replicas.simulated_request import Ask, read_chat, read_completion
from serve_app.replicas.simulated_text import Script, count_tokens, write

Item = dict[str, Any]


class SimulatedServer(SendsBatches):
    """Not a model: it answers with seeded words, or a script, at a set pace.

    Methods, items and errors are those of `VllmServer`, so that everything above it is the real thing. The same
    request always gets the same answer. All requests keep the set pace however many there are, unless `slowdown_ms` is set.
    """

    def __init__(self, model_id: str, config: dict[str, Any]) -> None:
        self._model_id = model_id
        self._config = SimulatedConfig(**config)
        self._faults = FaultPlan(self._config.faults)
        self._waiting = 0
        self._running = 0

    async def set_faults(self, faults: Sequence[dict[str, Any]]) -> None:
        """What goes wrong from now on, counted afresh; for tests, over a handle. Raises ValueError for an unknown fault."""
        self._faults = FaultPlan([FaultConfig(**fault) for fault in faults])

    async def stats(self) -> dict[str, Any]:
        """Requests before (`waiting`) and after (`running`) their first token."""
        replica = serve.get_replica_context().replica_id.unique_id
        return {"model": self._model_id, "replica": replica, "running": self._running, "waiting": self._waiting}

    async def record_routing_stats(self) -> Item:
        """Serve's hook that is answered however full the queue is; see replicas.probe."""
        return hook_answer(await self.stats())

    async def check_health(self) -> None:
        """A simulation is always well."""

    async def chat_chunks(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[SentItem, None]:
        """Answer a chat request as a stream of chat.completion.chunk objects."""
        async with aclosing(self._with_fault(self._chat(body, request_id), body)) as items:
            async for item in items:
                yield item

    async def completion_chunks(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[SentItem, None]:
        """Answer a legacy completion: the chunks of the stream, or the one response when `stream` is not set."""
        async with aclosing(self._with_fault(self._completion(body, request_id), body)) as items:
            async for item in items:
                yield item

    def _with_fault(self, items: AsyncGenerator[Item, None], body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        fault = self._faults.next()
        return items if fault is None else spoilt(items, fault, body, self._held)

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _chat(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[Item, None]:
        try:
            ask = read_chat(body)
        except BadRequest as error:
            yield {"status": 400, "error": error.body()}
            return
        head = self._head(body, f"chatcmpl-{request_id}", "chat.completion.chunk")
        scripts = [write(ask, self._config, choice) for choice in range(ask.choices)]
        usage = _UsageCount(count_tokens(ask.prompt))
        first = True
        async with aclosing(self._paced(scripts)) as steps:
            async for step in steps:
                if first:
                    first = False
                    yield {"status": 200}
                    for choice in range(ask.choices):
                        yield {**head, "choices": [_choice(choice, {"role": "assistant", "content": ""})]}
                for choice, script in enumerate(scripts):
                    if step < max(1, len(script.pieces)):
                        yield {
                            **head,
                            **_chat_step(ask, script, choice, step, request_id),
                            "usage": usage.count(choice, script, step),
                        }
        yield {**head, "choices": [], "usage": usage.total(), "system_fingerprint": "simulated"}

    async def _completion(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[Item, None]:
        try:
            asks = read_completion(body)
        except BadRequest as error:
            yield {"status": 400, "error": error.body()}
            return
        head = self._head(body, f"cmpl-{request_id}", "text_completion")
        scripts = [write(ask, self._config, choice) for ask in asks for choice in range(ask.choices)]
        usage = _UsageCount(sum(count_tokens(ask.prompt) for ask in asks))
        stream = bool(body.get("stream"))
        first = True
        async with aclosing(self._paced(scripts)) as steps:
            async for step in steps:
                if first:
                    first = False
                    yield {"status": 200}
                for choice, script in enumerate(scripts):
                    if step < max(1, len(script.pieces)):
                        usage.count(choice, script, step)
                        if stream:
                            end = _end(script) if step >= len(script.pieces) - 1 else {"finish_reason": None}
                            text = script.pieces[step] if script.pieces else ""
                            yield {**head, "choices": [{"index": choice, "text": text, "logprobs": None, **end}]}
        if not stream:
            choices = [{"index": i, "text": "".join(s.pieces), "logprobs": None, **_end(s)} for i, s in enumerate(scripts)]
            yield {**head, "choices": choices, "usage": usage.total()}
        elif (body.get("stream_options") or {}).get("include_usage"):
            yield {**head, "choices": [], "usage": usage.total()}

    def _head(self, body: dict[str, Any], answer_id: str, kind: str) -> Item:
        return {"id": answer_id, "object": kind, "created": int(time.time()), "model": body.get("model") or self._model_id}

    async def _paced(self, scripts: list[Script]) -> AsyncGenerator[int, None]:
        """The number of each token, when its time has come: on a fixed beat, so that delays do not add up."""
        first_s = self._pace_s(self._config.ttft_ms, self._waiting + self._running)
        due = time.monotonic() + first_s
        with self._held():
            await asyncio.sleep(first_s)
        self._running += 1
        try:
            for step in range(max([1, *(len(script.pieces) for script in scripts)])):
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                yield step
                due += self._pace_s(self._config.itl_ms, self._waiting + self._running - 1)
        finally:
            self._running -= 1

    def _pace_s(self, alone_ms: float, others: int) -> float:
        """Seconds to the next token of a request beside so many others."""
        return (alone_ms + self._config.slowdown_ms * others) / 1000


class _UsageCount:
    """Token counts of one answer as it grows."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt = prompt_tokens
        self._done: dict[int, int] = {}

    def count(self, choice: int, script: Script, step: int) -> Item:
        """The usage after token `step` of a choice, of that choice alone, as vLLM reports it."""
        self._done[choice] = min(step + 1, len(script.pieces))
        return self._usage(self._done[choice])

    def total(self) -> Item:
        return self._usage(sum(self._done.values()))

    def _usage(self, completion: int) -> Item:
        return {"prompt_tokens": self._prompt, "completion_tokens": completion, "total_tokens": self._prompt + completion}


def _choice(index: int, delta: Item, **end: Any) -> Item:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **end}


def _end(script: Script) -> Item:
    return {"finish_reason": script.finish_reason, "stop_reason": script.stop_reason}


def _chat_step(ask: Ask, script: Script, choice: int, step: int, request_id: str) -> Item:
    """The `choices` of the chunk that carries token `step` of a choice."""
    piece = script.pieces[step] if script.pieces else ""
    delta: Item = {"content": piece}
    if ask.tool is not None:
        call = {"name": ask.tool, "arguments": piece}
        delta = {"tool_calls": [{"index": 0, "id": f"call-{request_id}-{choice}", "type": "function", "function": call}]}
    end = _end(script) if step >= len(script.pieces) - 1 else {}
    made = _choice(choice, delta, **end)
    if ask.logprobs and ask.tool is None:
        # Made up, as the text is: every token was certain.
        entry = {"token": piece, "logprob": 0.0, "bytes": list(piece.encode()), "top_logprobs": []}
        made["logprobs"] = {"content": [entry]}
    return {"choices": [made]}
