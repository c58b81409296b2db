"""The replica of a vLLM model: Ray Serve's LLMServer behind plain dicts and strings.

Imported by replicas, and by the process that deploys them; never by the gateway, because this import brings vLLM
and torch.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from fastapi import HTTPException
from pydantic import BaseModel, ValidationError
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorResponse,
)
from ray.serve.llm import LLMConfig, LLMServer
from vllm.exceptions import VLLMClientError

from serve_app.configured import AdapterConfig
from serve_app.errors import AifactoryError, BadRequest, NotFound, UpstreamFailed
from serve_app.replicas.adapters import adapter_loader
from serve_app.replicas.batches import SendsBatches
from serve_app.replicas.cpu_engine import CpuEngine
from serve_app.replicas.probe import hook_answer
from serve_app.replicas.whole import chunks_of, comes_whole

# So that the usage of an answer that is cut half-way is known too.
_USAGE_ALL_ALONG: Final = {"include_usage": True, "continuous_usage_stats": True}
_SSE_PREFIX: Final = "data: "
_SSE_END: Final = "[DONE]"
_NAMED_FAULTS: Final = 3  # validation faults that one message names
_TYPE_NAMES: Final = frozenset({"str", "int", "float", "bool", "list", "dict", "bytes"})


class SkipNodeInit(CallbackBase):  # type: ignore[misc]  # Ray ships no types
    """For a model in a local directory: leave out the task that downloads it, a process and a vLLM import of its own."""

    async def on_before_node_init(self) -> None:
        """Called by Ray before it prepares the node."""
        self.ctx.run_init_node = False


class VllmServer(SendsBatches, LLMServer):  # type: ignore[misc]  # Ray ships no types
    """One vLLM engine.

    Streaming methods yield `{"status": 200}` and then chunks as JSON text, or only `{"status": 4xx | 5xx, "error": …}`.
    An error in mid-stream is a chunk with an `error` object. Closing the call aborts the request in the engine.
    """

    _default_engine_cls = CpuEngine  # which is Ray's own wherever the model does not run on a CPU

    async def __init__(  # type: ignore[misc]  # Serve awaits it, as Ray's own
        self, llm_config: LLMConfig, *, adapters: dict[str, Any] | None = None
    ) -> None:
        loader = adapter_loader(llm_config, AdapterConfig(**adapters)) if adapters else None
        await super().__init__(llm_config, model_downloader=loader)

    @classmethod
    def get_deployment_options(cls, llm_config: LLMConfig) -> dict[str, Any]:
        """Ray's options, less the worker set-up hook: it would import vLLM in processes that do not need it."""
        options: dict[str, Any] = super().get_deployment_options(llm_config)
        options["ray_actor_options"]["runtime_env"].pop("worker_process_setup_hook", None)
        return options

    async def chat_chunks(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[dict[str, Any] | str, None]:
        """Answer a chat request as a stream of chat.completion.chunk objects."""
        if not body.get("messages"):
            # vLLM refuses it too, but without naming the field.
            yield {"status": 400, "error": BadRequest("messages: at least one message is needed", param="messages").body()}
            return
        whole = comes_whole(body)
        asked = {**body, "request_id": request_id, "stream": not whole, "stream_options": None if whole else _USAGE_ALL_ALONG}
        async with aclosing(self._answer(ChatCompletionRequest, "chat", asked)) as items:
            async for item in items:
                yield item

    async def completion_chunks(self, body: dict[str, Any], request_id: str) -> AsyncGenerator[dict[str, Any] | str, None]:
        """Answer a legacy completion: the chunks of the stream, or the one response when `stream` is not set."""
        async with aclosing(self._answer(CompletionRequest, "completions", {**body, "request_id": request_id})) as items:
            async for item in items:
                yield item

    async def stats(self) -> dict[str, Any]:
        """What the engine works on now, in sequences (a request with n=3 is three): before or after the first token."""
        states = list(self.engine._engine_client.output_processor.request_states.values())
        waiting = sum(1 for state in states if state.is_prefilling)
        return {
            "model": self._llm_config.model_id,
            "replica": serve.get_replica_context().replica_id.unique_id,
            "running": len(states) - waiting,
            "waiting": waiting,
        }

    async def held_adapters(self) -> int:
        """How many adapters the engine holds."""
        return len(await self.engine._engine_client.list_loras())

    async def record_routing_stats(self) -> dict[str, Any]:
        """Serve's hook that is answered however full the queue is; see replicas.probe."""
        return {**await super().record_routing_stats(), **hook_answer(await self.stats())}

    async def _answer(
        self, kind: type[BaseModel], method: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any] | str, None]:
        try:
            request = kind.model_validate(dict(body))
        except (ValidationError, VLLMClientError, ValueError) as error:
            yield {"status": 400, "error": _fault_body(error)}
            return
        try:
            await self._maybe_resolve_lora_from_multiplex()
        except (AifactoryError, HTTPException, ValueError) as error:
            yield _adapter_fault(error)
            return
        begun = False
        async with aclosing(getattr(self.engine, method)(request)) as items:
            async for text in _texts(items):
                if not begun:
                    begun = True
                    if error_body := _error_in(text):
                        yield {"status": _status_of(error_body), "error": error_body}
                        return
                    yield {"status": 200}
                yield text


async def _texts(items: AsyncIterator[Any]) -> AsyncIterator[str]:
    """What the engine yields (SSE lines, or one response or error object) as JSON text."""
    async for item in items:
        if isinstance(item, str):
            text = item.removeprefix(_SSE_PREFIX).rstrip()
            if text != _SSE_END:
                yield text
        elif isinstance(item, ErrorResponse):
            yield item.model_dump_json()
        elif item.object == "chat.completion":
            for chunk in chunks_of(item.model_dump(mode="json", exclude_none=True)):
                yield json.dumps(chunk)
        else:
            yield item.model_dump_json()


def _adapter_fault(error: Exception) -> dict[str, Any]:
    """Ours from the local loader, HTTPException from Ray's cloud loader, ValueError when vLLM refuses the weights."""
    if isinstance(error, HTTPException):
        error = (NotFound if error.status_code == 404 else UpstreamFailed)(str(error.detail), param="model")
    elif not isinstance(error, AifactoryError):
        error = BadRequest(str(error), param="model")
    return {"status": error.status, "error": error.body()}


def _error_in(text: str) -> dict[str, Any] | None:
    if not text.startswith('{"error"'):
        return None
    body = json.loads(text)["error"]
    return body if isinstance(body, dict) else {"message": str(body)}


def _status_of(error_body: Mapping[str, Any]) -> int:
    code = error_body.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _fault_body(error: Exception) -> dict[str, Any]:
    """Name the first faults of a request, each with its field."""
    if not isinstance(error, ValidationError):
        # vLLM's own checks; they know the field as `parameter`.
        return BadRequest(str(error), param=getattr(error, "parameter", None)).body()
    first: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        # A union reports a fault per class that it tried: one per field of the request is enough.
        where, what = _field(fault["loc"]), str(fault["msg"]).removeprefix("Value error, ")
        first.setdefault(where.partition(".")[0], f"{where}: {what}" if where else what)
    named = list(first.values())[:_NAMED_FAULTS]
    return BadRequest("; ".join(named), param=named[0].partition(":")[0] if next(iter(first)) else None).body()


def _field(location: tuple[int | str, ...]) -> str:
    """`messages.0.content`: pydantic also puts the classes that it tried into the path, which callers do not know."""
    parts: list[str] = []
    for part in location:
        if isinstance(part, str) and (not part.islower() or not part.isidentifier() or part in _TYPE_NAMES):
            continue
        parts.append(str(part))
    return ".".join(parts)
