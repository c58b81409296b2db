"""The simulated models as an engine of Ray Serve LLM, in vLLM's place below Ray's own server and ingress."""

import uuid
from collections.abc import AsyncGenerator
from typing import Any

from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionResponse

from bench.gateway.simulated_openai import SimulatedModels, frames, whole


class SimulatedEngine:
    """What Ray's LLMServer calls of an engine, for chat. Duck-typed: the base class has a dozen further methods."""

    def __init__(self, llm_config: Any) -> None:
        self._model_id = llm_config.model_id
        self._models = SimulatedModels()

    async def start(self) -> None:
        """A simulation starts at once."""

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def check_health(self) -> None:
        """A simulation is always well."""

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """SSE frames as text, or one ChatCompletionResponse, as VLLMEngine gives them."""
        body = request.model_dump(exclude_unset=True, mode="json")
        chunks = self._models.chunks({**body, "model": self._model_id}, uuid.uuid4().hex)
        if request.stream:
            async for frame in frames(chunks):
                yield frame.decode()
        else:
            yield ChatCompletionResponse(**await whole(chunks))
