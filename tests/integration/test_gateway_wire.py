"""Tool calls, several choices, logprobs, a model's reasoning, token ids: over HTTP, to openai's client, and again."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.integration.gateway_server import KEY, GatewayUnderTest, serve_gateway
from tests.integration.vllm_chunks import FINGERPRINT, LOGPROBS, REASONING, TOKEN_IDS, TOOLS, TWO_CHOICES, Chunk, VllmReplicas

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
WEATHER = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock", "strict": True, "parameters": {"type": "object"}}}
ASKS: dict[str, tuple[list[Chunk], dict[str, Any]]] = {
    "tools": (TOOLS, {"tools": [WEATHER, CLOCK]}),
    "two choices": (TWO_CHOICES, {"n": 2}),
    "logprobs": (LOGPROBS, {"logprobs": True, "top_logprobs": 1}),
    "reasoning": (REASONING, {}),
    "token ids": (TOKEN_IDS, {"return_token_ids": True}),
}
EVERY = pytest.mark.parametrize("kind", list(ASKS))
NO_CACHE = {"Cache-Control": "no-store"}


@asynccontextmanager
async def asking(kind: str) -> AsyncIterator[tuple[GatewayUnderTest, httpx.AsyncClient, dict[str, Any]]]:
    chunks, fields = ASKS[kind]
    async with serve_gateway({"replicas": VllmReplicas(chunks)}) as gateway, gateway.http() as http:
        yield gateway, http, {**ASK, **fields}


@asynccontextmanager
async def sdk(gateway: GatewayUnderTest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def whole(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> httpx.Response:
    response = await http.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response


async def streamed(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await whole(http, {**body, "stream": True, "stream_options": {"include_usage": True}}, **headers)


def chunks_of(response: httpx.Response) -> list[Chunk]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(chunks: list[Chunk]) -> dict[int, dict[str, Any]]:
    """The choices of a stream, told like those of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for told in (choice for chunk in chunks for choice in chunk["choices"]):
        choice = choices.setdefault(told["index"], {"logprobs": [], "calls": {}})
        choice["logprobs"] += (told["logprobs"] or {}).get("content", [])
        for name, value in told["delta"].items():
            if name == "tool_calls":
                for part in value:
                    seen = choice["calls"].setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
                    seen["id"] += part.get("id", "")
                    seen["name"] += part["function"].get("name", "")
                    seen["arguments"] += part["function"]["arguments"]
            else:
                choice[name] = choice.get(name, "") + value
        choice |= {name: told[name] for name in ("finish_reason", "stop_reason", "token_ids") if told.get(name) is not None}
    return choices


def told_whole(body: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The choices of a whole answer, in the same form."""
    choices = {}
    for told in body["choices"]:
        message = dict(told["message"])
        calls = {
            number: {"id": call["id"], **call["function"]} for number, call in enumerate(message.pop("tool_calls", None) or ())
        }
        ends = {name: told[name] for name in ("finish_reason", "stop_reason", "token_ids") if told.get(name) is not None}
        logprobs = (told["logprobs"] or {}).get("content", [])
        choices[told["index"]] = {**message, "content": message["content"] or "", "calls": calls, "logprobs": logprobs, **ends}
    return choices


@EVERY
async def test_a_stream_and_a_whole_answer_say_the_same(kind: str) -> None:
    async with asking(kind) as (_, http, body):
        live = await streamed(http, body, **NO_CACHE)
        answer = (await whole(http, body, **NO_CACHE)).json()
        again = await http.get(f"/v1/runs/{live.headers['x-trace-id']}/events")
    parts = chunks_of(live)
    shown, said = joined(parts), told_whole(answer)
    if kind == "tools":  # the call that the engine left without id has one of its run
        made, other = (told[0]["calls"][1].pop("id") for told in (shown, said))
        assert made != other
    assert shown == said
    assert parts[-1]["usage"] == answer["usage"]
    events = chunks_of(again)
    for last in (parts[-1], events[-1]):
        del last["x_factory"]  # one tells a miss, the other a reader that came later
    assert events == parts


@EVERY
async def test_a_key_replays_it_byte_for_byte(kind: str) -> None:
    async with asking(kind) as (gateway, http, body):
        first = await whole(http, body, **{"Idempotency-Key": "k"})
        second = await whole(http, body, **{"Idempotency-Key": "k"})
        assert second.headers["idempotent-replayed"] == "true"
        assert second.content == first.content
        shown = await streamed(http, body, **{"Idempotency-Key": "k"})
        assert (await streamed(http, body, **{"Idempotency-Key": "k"})).content == shown.content
        assert joined(chunks_of(shown)) == told_whole(first.json())
        live = await streamed(http, body, **{"Idempotency-Key": "streamed first"})
        later = await streamed(http, body, **{"Idempotency-Key": "streamed first"})
        assert joined(chunks_of(later)) == joined(chunks_of(live))
        assert gateway.replicas.calls == (2 if kind == "tools" else 1), "the second key is new: only the cache spares the model"


@EVERY
async def test_the_cache_tells_it_again_but_never_a_tool_call(kind: str) -> None:
    async with asking(kind) as (gateway, http, body):
        first = await whole(http, body)
        second = await whole(http, body)
        third = await streamed(http, body)
    if kind == "tools":
        assert [r.headers["x-cache"] for r in (first, second, third)] == ["miss", "miss", "miss"]
        assert gateway.replicas.calls == 3
        return
    assert [r.headers["x-cache"] for r in (first, second, third)] == ["miss", "exact", "exact"]
    one, two = first.json(), second.json()
    own = ("id", "created", "x_factory")
    assert {n: v for n, v in one.items() if n not in own} == {n: v for n, v in two.items() if n not in own}
    assert joined(chunks_of(third)) == told_whole(one)


async def test_openais_client_reads_tool_calls() -> None:
    async with asking("tools") as (gateway, _, body), sdk(gateway) as client:
        answer = await client.chat.completions.create(**body)
        async with client.chat.completions.stream(**body) as stream:
            final = await stream.get_final_completion()
    for told in (answer, final):
        (choice,) = told.choices
        assert choice.finish_reason == "tool_calls"
        assert not choice.message.content
        weather, clock = choice.message.tool_calls or []
        assert weather.type == clock.type == "function"
        assert (weather.id, weather.function.name, weather.function.arguments) == (
            "call_of_the_engine", "weather", '{"city": "Paris"}',
        )  # fmt: skip
        assert (clock.function.name, clock.function.arguments) == ("clock", "{}")
        assert clock.id.startswith("call_")
        assert len(clock.id) <= 40, "longer ids are refused by OpenAI, when a conversation is taken there"
    assert answer.choices[0].message.content is None


async def test_openais_client_reads_several_choices_and_logprobs() -> None:
    async with (
        asking("two choices") as (gateway, _, body),
        sdk(gateway) as client,
        client.chat.completions.stream(**body) as stream,
    ):
        final = await stream.get_final_completion()
    assert [(c.index, c.message.content, c.finish_reason) for c in final.choices] == [(0, "Paris", "stop"), (1, "Lyon", "stop")]
    async with asking("logprobs") as (gateway, _, body), sdk(gateway) as client:
        answer = await client.chat.completions.create(**body)
        async with client.chat.completions.stream(**body) as stream:
            final = await stream.get_final_completion()
    for told in (answer, final):
        logprobs = told.choices[0].logprobs
        assert logprobs is not None
        assert [(entry.token, entry.logprob) for entry in logprobs.content or ()] == [
            ("Pa", -0.25), ("\ufffd", -1.5), ("ris", -0.125),
        ]  # fmt: skip


async def test_a_models_reasoning_has_both_names() -> None:
    async with asking("reasoning") as (gateway, http, body):
        parts = chunks_of(await streamed(http, body))
        async with sdk(gateway) as client:
            message = (await client.chat.completions.create(**body)).choices[0].message
    thoughts = [c["choices"][0]["delta"] for c in parts if c["choices"] and "reasoning" in c["choices"][0]["delta"]]
    assert thoughts == [{"reasoning": t, "reasoning_content": t} for t in ("France, ", "so", ".")]
    assert message.content == "Paris"
    assert message.model_extra == {"reasoning": "France, so.", "reasoning_content": "France, so."}


async def test_what_the_engine_says_of_the_whole_answer_is_in_the_stream() -> None:
    async with asking("token ids") as (_, http, body):
        answer = (await whole(http, body)).json()
        parts = chunks_of(await streamed(http, body, **NO_CACHE))
    assert answer["system_fingerprint"] == FINGERPRINT
    assert (answer["choices"][0]["token_ids"], answer["prompt_token_ids"]) == ([7, 8, 9, 10], [1, 2, 3, 4, 5])
    assert [c.get("system_fingerprint") for c in parts[-2:]] == [None, FINGERPRINT]
    assert parts[-1]["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert [i for c in parts for choice in c["choices"] for i in choice.get("token_ids", ())] == [7, 8, 9, 10]
    async with asking("two choices") as (_, http, body):
        parts = chunks_of(await whole(http, {**body, "stream": True}))
    assert [c.get("system_fingerprint") for c in parts[-3:]] == [None, FINGERPRINT, FINGERPRINT], "on each choice's last chunk"


async def test_usage_all_along_is_told_at_the_end() -> None:
    """Load generators ask for it as a matter of course: to refuse it would shut them out."""
    async with asking("reasoning") as (_, http, body):
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = chunks_of(await whole(http, {**body, "stream": True, "stream_options": options}))
    assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_a_debate_refuses_token_ids() -> None:
    async with asking("token ids") as (_, http, body):
        refused = await http.post("/v1/chat/completions", json={**body, "x_route": "workflow"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "return_token_ids")
