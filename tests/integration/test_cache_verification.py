"""Semantic answers are provisional: what becomes of them once a fresh answer is there."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from serve_app.events import ChoiceEnd, FinishedEvent, RoleEvent, TokenEvent, Usage
from serve_app.runs import Answer, Outcome, Question, Run, RunStatus
from serve_app.trust import Trust
from tests.integration.gateway_server import GatewayUnderTest, ask, serve_gateway, until

WAIT_S = 30.0
FIRST, SECOND, THIRD = "What is the same?", "please: what's the same", "hello, what is the same?"


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway(cache_verify_share=1.0) as served:
        yield served


async def trust_in(gateway: GatewayUnderTest, text: str) -> Trust:
    messages = [{"role": "user", "content": text}]
    return await gateway.trust.trust(Question(project="p", route="direct", model="m", adapter=None, messages=messages).scope)


async def trusted(gateway: GatewayUnderTest, *, confirmed: int, refuted: int) -> Trust:
    async with asyncio.timeout(WAIT_S):
        while (found := await trust_in(gateway, FIRST)) == Trust():
            await asyncio.sleep(0.01)
    assert (found.confirmed, found.refuted) == (confirmed, refuted)
    return found


async def test_a_fresh_answer_that_says_the_same_confirms(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    await ask(http, FIRST)
    hit = await ask(http, SECOND)
    assert (hit.headers["x-cache"], hit.headers["x-cache-provisional"]) == ("semantic", "true")
    assert (await trusted(gateway, confirmed=1, refuted=0)).least_similarity == 0
    assert gateway.replicas.calls == 2, "the question was put to a replica behind the caller's back"
    assert gateway.replicas.bodies[1]["messages"] == [{"role": "user", "content": SECOND}]
    assert (await ask(http, THIRD)).headers["x-cache"] == "semantic"


@pytest.mark.parametrize("other", ["It is Lyon.", "I do not know that at all, sorry."])
async def test_one_that_says_something_else_takes_the_entry_out(other: str) -> None:
    async with serve_gateway(cache_verify_share=1.0) as gateway, gateway.http() as http:
        await ask(http, FIRST)
        gateway.replicas.words = [other]
        wrong = await ask(http, SECOND)
        assert wrong.headers["x-cache"] == "semantic"
        found = await trusted(gateway, confirmed=0, refuted=1)
        assert found.least_similarity == 1.0
        assert (await ask(http, THIRD)).headers["x-cache"] == "miss"
        again = (await ask(http, FIRST)).json()["choices"][0]["message"]["content"]
        assert again == other, "the refuted answer is not given to its own question either"


async def test_a_question_that_gets_no_whole_answer_decides_nothing(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    await ask(http, FIRST)
    gateway.replicas.words = [" "]
    await ask(http, SECOND)
    await until(lambda: gateway.replicas.calls == 2 and gateway.replicas.running == 0)
    await until(lambda: gateway.lifecycle.verifier is not None and gateway.lifecycle.verifier.idle)
    assert await trust_in(gateway, FIRST) == Trust()
    assert (await ask(http, THIRD)).headers["x-cache"] == "semantic"


async def test_with_a_share_of_0_nobody_is_asked_and_a_live_change_is_taken(
    http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    gateway.lifecycle.settings = gateway.lifecycle.settings.with_live({"cache_verify_share": 0.0})
    await ask(http, FIRST)
    await ask(http, SECOND)
    assert gateway.lifecycle.verifier is not None
    assert gateway.lifecycle.verifier.idle
    assert gateway.replicas.calls == 1


async def test_a_judge_has_the_last_word(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    gateway.lifecycle.settings = gateway.lifecycle.settings.with_live({"cache_judge_model": "m"})
    await ask(http, FIRST)
    gateway.replicas.words = ["different"]  # the fresh answer, and the verdict on it
    gateway.lifecycle.settings = gateway.lifecycle.settings.with_live({"cache_verify_similarity": 0.0})
    await ask(http, SECOND)
    await trusted(gateway, confirmed=0, refuted=1)
    verdict = gateway.replicas.bodies[2]
    assert verdict["structured_outputs"] == {"choice": ["same", "different"]}
    assert SECOND in verdict["messages"][0]["content"]


async def debated(gateway: GatewayUnderTest, run: Run, text: str) -> None:
    """What a worker does."""
    publisher = await gateway.bus.open_run(run.trace_id)
    await publisher.emit(RoleEvent())
    answer = Answer("debate", ({"role": "assistant", "content": text},), (ChoiceEnd(finish_reason="stop"),), Usage())
    await gateway.store.settle(run, Outcome(RunStatus.SUCCEEDED, "stop", Usage(), answer=answer))
    await publisher.emit(TokenEvent(text=text))
    await publisher.emit(FinishedEvent(reason="stop"))


def chunks_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(("said", "confirmed"), [("The answer.", True), ("It is Lyon.", False)])
async def test_a_debate_shows_the_provisional_answer_at_once_and_its_own_as_the_content(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, said: str, confirmed: bool
) -> None:
    debate = {"x_route": "workflow"}
    provisional = {**debate, "x_cache": {"mode": "provisional"}, "stream": True}
    async with aclosing(gateway.queue.deliveries(limit=2)) as deliveries, asyncio.TaskGroup() as group, asyncio.timeout(WAIT_S):
        first = group.create_task(ask(http, FIRST, **debate))
        delivery = await anext(deliveries)
        await debated(gateway, delivery.run, "The answer.")
        await delivery.done()
        await first
        body = {"model": "m", "messages": [{"role": "user", "content": SECOND}], **provisional}
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert (response.headers["x-cache"], response.headers["x-cache-provisional"]) == ("miss", "true")
            assert response.headers["x-cache-similarity"] == "1.0000"
            lines = response.aiter_lines()
            shown = json.loads((await anext(lines)).removeprefix("data: "))  # nobody has worked on the debate yet
            assert shown["x_provisional"] is True
            assert shown["choices"][0]["delta"] == {"role": "assistant", "reasoning_content": "The answer."}
            delivery = await anext(deliveries)
            await debated(gateway, delivery.run, said)
            await delivery.done()
            chunks = chunks_of("\n".join([line async for line in lines]))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == said, "the two texts are not mixed"
    factory = chunks[-1]["x_factory"]
    assert factory["provisional"] == {"content": "The answer.", "similarity": 1.0}
    assert factory["cache"]["result"] == "miss"
    scope = delivery.run.question.scope
    async with asyncio.timeout(WAIT_S):
        while (found := await gateway.trust.trust(scope)) == Trust():
            await asyncio.sleep(0.01)
    assert (found.confirmed, found.refuted) == ((1, 0) if confirmed else (0, 1))


async def test_without_a_similar_answer_a_provisional_debate_is_a_plain_one(
    http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    async with aclosing(gateway.queue.deliveries(limit=1)) as deliveries, asyncio.TaskGroup() as group, asyncio.timeout(WAIT_S):
        asked = group.create_task(ask(http, FIRST, x_route="workflow", x_cache={"mode": "provisional"}))
        delivery = await anext(deliveries)
        await debated(gateway, delivery.run, "The answer.")
        await delivery.done()
        response = await asked
    assert "x-cache-provisional" not in response.headers
    assert "provisional" not in response.json()["x_factory"]
    again = await ask(http, FIRST, x_route="workflow", x_cache={"mode": "provisional"})
    assert again.headers["x-cache"] == "exact"


async def test_provisional_is_for_debates_alone(http: httpx.AsyncClient) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": FIRST}], "x_cache": {"mode": "provisional"}}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x_cache"
