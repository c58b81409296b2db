"""A debate at the gateway: what is asked reaches the worker whole or is refused by name; what it did is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from dagster_project.debate import Ballot, DebateSpec, Draft, Verdict, answer, total_usage
from serve_app.answers import succeeded
from serve_app.events import ProgressEvent, RoleEvent, TokenEvent, Usage, UsageEvent
from serve_app.lifecycle.settle import settle
from serve_app.runs import Run
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway

WAIT_S = 20.0
USER = [{"role": "user", "content": "Capital of France?"}]
ASK: dict[str, Any] = {"model": "m", "x_route": "workflow", "messages": USER}
LABELS = [{"task": "A"}, {"task": "B", "model": "m", "adapter": "poet"}]
IMAGE = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]


def of_debate(**fields: Any) -> dict[str, Any]:
    return {"x_debate": fields}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{}]}, "tools", "unsupported"),
        ({"functions": [{}]}, "functions", "unsupported"),
        ({"tool_choice": "auto"}, "tool_choice", "unsupported"),
        ({"function_call": "auto"}, "function_call", "unsupported"),
        ({"logprobs": True}, "logprobs", "unsupported"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "unsupported"),
        ({"n": 2}, "n", "unsupported"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message", "unsupported"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "unsupported"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages[0].content", "unsupported"),
        (of_debate(rounds=4), "x_debate.rounds", "invalid_value"),
        (of_debate(rounds=0), "x_debate.rounds", "invalid_value"),
        (of_debate(strategy="duel"), "x_debate.strategy", "invalid_value"),
        (of_debate(quorum=0), "x_debate.quorum", "invalid_value"),
        (of_debate(quorum=4), "x_debate.quorum", "invalid_value"),
        (of_debate(quorum=3, tasks=LABELS), "x_debate.quorum", "invalid_value"),
        (of_debate(token_budget=0), "x_debate.token_budget", "invalid_value"),
        (of_debate(token_budget=63), "x_debate.token_budget", "invalid_value"),
        (of_debate(token_budget="many"), "x_debate.token_budget", "invalid_value"),
        (of_debate(quorom=1), "x_debate.quorom", "invalid_value"),
        (of_debate(judge_model="nope"), "x_debate.judge_model", "model_not_found"),
        (of_debate(tasks=[*LABELS, {"task": "C", "model": "nope"}]), "x_debate.tasks[2]", "model_not_found"),
        ({"model": "nope"}, "model", "model_not_found"),
    ],
)
async def test_what_a_debate_cannot_do_is_refused_by_name(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, fields: dict[str, Any], param: str, code: str
) -> None:
    response = await http.post("/v1/chat/completions", json={**ASK, **fields})
    assert response.status_code == (404 if code == "model_not_found" else 400)
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert await gateway.queue.backlog() == 0


async def test_a_quorum_above_the_tasks_is_told_with_what_would_do(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={**ASK, **of_debate(quorum=7)})
    assert response.json()["error"]["message"] == "x_debate.quorum is 7, but the debate has 3 tasks; use 1 to 3"


@asynccontextmanager
async def asked(gateway: GatewayUnderTest, http: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[Run]:
    """The run that a request made, as a worker gets it. The request goes on until the block ends."""
    async with asyncio.timeout(WAIT_S), aclosing(gateway.queue.deliveries(limit=1)) as deliveries:
        asking = asyncio.ensure_future(http.post("/v1/chat/completions", json=body))
        try:
            yield (await anext(deliveries)).run
        finally:
            asking.cancel()
            await asyncio.wait([asking])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {"strategy": "judge", "rounds": 1, "quorum": None, "token_budget": None, "drafts": True}),
        ({"n": 1, "logprobs": False, "tool_choice": "none", "modalities": ["text"]}, {"strategy": "judge"}),
        ({"continue_final_message": False, "add_generation_prompt": True}, {"strategy": "judge"}),
        (of_debate(strategy="vote", rounds=3, drafts=False), {"strategy": "vote", "rounds": 3, "drafts": False}),
        (of_debate(strategy="consensus", quorum=2), {"strategy": "consensus", "quorum": 2}),
        (of_debate(strategy="synthesize", judge_model="m:poet"), {"judge_id": "m:poet"}),
        (of_debate(token_budget=64), {"token_budget": 64}),
        (of_debate(token_budget=48, tasks=LABELS, quorum=1), {"token_budget": 48, "enough": 1}),
    ],
)
async def test_what_is_asked_reaches_the_worker(
    gateway: GatewayUnderTest, http: httpx.AsyncClient, fields: dict[str, Any], told: dict[str, Any]
) -> None:
    async with asked(gateway, http, {**ASK, **fields}) as run:
        assert run.question.debate is not None
        spec = DebateSpec.model_validate(run.question.debate)
        assert set(run.question.debate) == set(DebateSpec.model_fields), "nothing is left to the worker's defaults"
        assert {name: getattr(spec, name) for name in told} == told


async def test_a_format_reaches_the_debaters(gateway: GatewayUnderTest, http: httpx.AsyncClient) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    async with asked(gateway, http, {**ASK, "response_format": shape}) as run:
        assert run.question.params["response_format"] == shape


PRESET = {
    "tasks": [{"task": "A"}, {"task": "B"}, {"task": "C"}],
    "strategy": "vote",
    "rounds": 2,
    "quorum": 3,
    "straggler_s": 4,
    "token_budget": 400,
    "closing_share": 0.5,
}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {"strategy": "vote", "rounds": 2, "quorum": 3, "token_budget": 400, "straggler_s": 4, "closing_share": 0.5}),
        ({"rounds": 1, "strategy": "judge", "quorum": 1, "token_budget": 80}, {"rounds": 1, "quorum": 1, "token_budget": 80}),
        ({"tasks": LABELS}, {"quorum": 2, "rounds": 2}),  # the quorum was meant for three
    ],
)
async def test_the_request_goes_over_the_preset(fields: dict[str, Any], told: dict[str, Any]) -> None:
    async with (
        serve_gateway(debate=PRESET) as gateway,
        gateway.http() as http,
        asked(gateway, http, {**ASK, **of_debate(**fields)}) as run,
    ):
        spec = DebateSpec.model_validate(run.question.debate)
        assert {name: getattr(spec, name) for name in told} == told


async def hold_debate(gateway: GatewayUnderTest) -> None:
    """What a worker does, without models: two rounds of two debaters, a judge that follows the order."""
    async with aclosing(gateway.queue.deliveries(limit=1)) as deliveries:
        run = (await anext(deliveries)).run
    spec = DebateSpec.model_validate(run.question.debate)
    publisher = await gateway.bus.open_run(run.trace_id)
    used = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
    await publisher.emit(RoleEvent())
    held = []
    for number in (1, 2):
        await publisher.emit(ProgressEvent(step="argue" if number == 1 else "round_2", done=0, of=2))
        held.append(
            [Draft(task=t.task, model=t.model_id, text=f"{t.task}{number}", usage=used, round=number) for t in spec.tasks]
        )
        for draft in held[-1]:
            await publisher.emit(TokenEvent(text=draft.text, task=draft.task, round=number))
    ballots = (Ballot(voter="m", order=("A", "B"), choice="A"), Ballot(voter="m", order=("B", "A"), choice="B"))
    usage = total_usage([used] * 6)
    made = answer("debate", spec, held, Verdict(winner="A", stop_reason="tie_first", ballots=ballots), usage)
    closing = (TokenEvent(text=made.text), UsageEvent(usage=usage))
    assert await settle(gateway.store, publisher, run, succeeded(made), closing=closing)


def facts(x_factory: dict[str, Any]) -> bytes:
    return orjson.dumps({k: v for k, v in x_factory.items() if k in ("route", "debate")})


async def test_stream_and_body_and_replay_tell_the_same(gateway: GatewayUnderTest, http: httpx.AsyncClient) -> None:
    body = {**ASK, **of_debate(tasks=LABELS, rounds=2)}
    keyed = {"Idempotency-Key": "debate-1"}
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(hold_debate(gateway))
        whole = await http.post("/v1/chat/completions", json=body, headers=keyed)
    told = whole.json()
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "A2"}
    assert told["usage"]["completion_tokens"] == 12
    debate = told["x_factory"]["debate"]
    assert (debate["winner"], debate["rounds"], debate["stop_reason"], debate["strategy"]) == ("A", 2, "tie_first", "judge")
    assert [(v["order"], v["choice"]) for v in debate["votes"]] == [(["A", "B"], "A"), (["B", "A"], "B")]
    assert [t["usage"]["completion_tokens"] for t in debate["tasks"]] == [4, 4]

    again = await http.post("/v1/chat/completions", json=body, headers=keyed)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == whole.content
    looked_up = (await http.get(f"/v1/runs/{whole.headers['x-trace-id']}")).json()
    assert looked_up["debate"] == debate

    streaming = {**body, "stream": True, "stream_options": {"include_usage": True}, "x_cache": {"mode": "bypass"}}
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(hold_debate(gateway))
        streamed = await http.post("/v1/chat/completions", json=streaming)
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    drafts = [(c["x_task"], c.get("x_round", 1), c["choices"][0]["delta"]["reasoning_content"]) for c in chunks if "x_task" in c]
    assert drafts == [("A", 1, "A1"), ("B", 1, "B1"), ("A", 2, "A2"), ("B", 2, "B2")]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "A2"
    assert chunks[-1]["usage"] == told["usage"]
    assert facts(chunks[-1]["x_factory"]) == facts(told["x_factory"])


async def test_drafts_can_be_left_out(gateway: GatewayUnderTest, http: httpx.AsyncClient) -> None:
    body = {**ASK, "stream": True, **of_debate(tasks=LABELS, drafts=False)}
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(hold_debate(gateway))
        streamed = await http.post("/v1/chat/completions", json=body)
    assert "x_task" not in streamed.text
    assert "reasoning_content" not in streamed.text
    assert '"content":"A2"' in streamed.text
