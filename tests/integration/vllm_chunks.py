"""A model that sends what vLLM sends: chunks of several choices, tool calls, logprobs, reasoning, token ids."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson

from serve_app.events import EventBody
from serve_app.replicas.chunks import ChunkReader
from serve_app.replicas.ends import choices_due
from tests.integration.gateway_server import ScriptedReplicas

Chunk = dict[str, Any]
_HEAD: Chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
FINGERPRINT = "vllm-0.29-ab12"


def piece(delta: dict[str, Any], *, index: int = 0, **of_choice: Any) -> Chunk:
    """A chunk of one choice; fields that are not given are left out, as vLLM does."""
    return {**_HEAD, "choices": [{"index": index, "delta": delta, **of_choice}]}


def begin(index: int = 0) -> Chunk:
    return piece({"role": "assistant", "content": ""}, index=index)


def close(completion_tokens: int) -> Chunk:
    usage = {"prompt_tokens": 5, "completion_tokens": completion_tokens, "total_tokens": 5 + completion_tokens}
    return {**_HEAD, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}


def call(number: int, arguments: str, *, call_id: str | None = None, name: str | None = None) -> Chunk:
    """A piece of a tool call."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return piece(
        {"tool_calls": [{"index": number, "function": function} | ({"id": call_id, "type": "function"} if call_id else {})]}
    )


def logprob(token: str, value: float) -> dict[str, Any]:
    entry: dict[str, Any] = {"token": token, "logprob": value, "bytes": list(token.encode())}
    return {"content": [{**entry, "top_logprobs": [entry]}]}


# Two calls at once; the engine has given the second no id.
TOOLS = [
    begin(),
    call(0, "", call_id="call_of_the_engine", name="weather"),
    call(0, '{"city":'),
    call(0, ' "Paris"}'),
    call(1, "", name="clock"),
    call(1, "{}"),
    piece({}, finish_reason="tool_calls"),
    close(9),
]
TWO_CHOICES = [
    begin(0),
    begin(1),
    piece({"content": "Pa"}, index=0),
    piece({"content": "Ly"}, index=1),
    piece({"content": "on"}, index=1, finish_reason="stop", stop_reason="END"),
    piece({"content": "ris"}, index=0, finish_reason="stop"),
    close(4),
]
LOGPROBS = [
    begin(),
    piece({"content": "Pa"}, logprobs=logprob("Pa", -0.25)),
    piece({"content": ""}, logprobs=logprob("\ufffd", -1.5)),  # half a character: no text yet
    piece({"content": "ris"}, logprobs=logprob("ris", -0.125), finish_reason="stop"),
    close(3),
]
REASONING = [
    begin(),
    piece({"reasoning": "France, "}),
    piece({"reasoning": "so"}),
    piece({"reasoning": ".", "content": "Pa"}),
    piece({"content": "ris"}, finish_reason="stop"),
    close(5),
]
TOKEN_IDS = [
    {**begin(), "prompt_token_ids": [1, 2, 3, 4, 5]},
    piece({"content": "Pa"}, token_ids=[7]),
    piece({}, token_ids=[8]),
    piece({"content": "ris"}, token_ids=[9, 10], finish_reason="stop"),
    close(4),
]


class VllmReplicas(ScriptedReplicas):
    """Sends `chunks` to every question, through the reader of the real replicas."""

    def __init__(self, chunks: list[Chunk]) -> None:
        super().__init__()
        self.chunks = chunks

    async def stream(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[EventBody, None]:
        self.calls += 1
        reader = ChunkReader(choices_due(body), request_id)
        for chunk in self.chunks:
            for event in reader.feed(orjson.dumps(chunk)):
                yield event
        yield reader.finish()
