"""bench/debate_quality: what is asked over the wire, in which amount, and what happens when an answer fails."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from bench.debate_quality.asking import Refused, Terms, ask_all
from bench.debate_quality.questions import choose, load
from bench.debate_quality.replies import Debated, Replies

DEBATES = (Debated(strategy="judge", rounds=1), Debated(strategy="vote", rounds=2))
TERMS = Terms(model="m", debates=DEBATES, style="short", max_tokens=32, temperature=0.7, seed=100)
QUESTIONS = choose(load(), 3, seed=1)

Answering = Callable[[dict[str, Any]], httpx.Response]


class Wire:
    """OpenAI's end of the wire: answers each request and remembers it."""

    def __init__(self, answering: Answering) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._answering = answering

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/chat/completions"
        self.bodies.append(json.loads(request.content))
        return self._answering(self.bodies[-1])

    def client(self) -> AsyncOpenAI:
        http: Any = httpx.AsyncClient(transport=httpx.MockTransport(self))  # the SDK takes it, its types name another
        return AsyncOpenAI(base_url="http://stack.invalid/v1", api_key="k", max_retries=0, http_client=http)


def completed(tokens: int) -> httpx.Response:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "42"}}
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9}
    facts = {"trace_id": "0" * 32, "debate": {"winner": "A"}}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [message], "usage": usage}
    return httpx.Response(200, json={**body, "x_factory": facts})


def priced(body: dict[str, Any]) -> httpx.Response:
    """A judge's debate costs 60 tokens, one of two rounds 100, everything else 10."""
    return completed({None: 10, 1: 60, 2: 100}[body.get("x_debate", {}).get("rounds")])


@pytest.fixture
async def replies(tmp_path: Path) -> AsyncIterator[Replies]:
    with Replies(tmp_path / "replies.jsonl", {}) as opened:
        yield opened


async def test_samples_are_drawn_for_the_dearest_debate_and_nothing_is_asked_twice(replies: Replies) -> None:
    wire = Wire(priced)
    async with wire.client() as client:
        assert await ask_all(client, TERMS, QUESTIONS, replies, lanes=2) == 0
        asked = Counter("debate" if "x_debate" in body else body["temperature"] for body in wire.bodies)
        assert asked == {"debate": 2 * 3, 0: 3, 0.7: 10 * 3}
        assert [len(replies.samples(question.id)) for question in QUESTIONS] == [10, 10, 10]
        await ask_all(client, TERMS, QUESTIONS, replies, lanes=2)
    assert len(wire.bodies) == sum(asked.values()), "an interrupted run asks only for what is missing"


async def test_requests_bypass_the_cache_are_seeded_and_ask_all_methods_the_same(replies: Replies) -> None:
    wire = Wire(priced)
    async with wire.client() as client:
        await ask_all(client, TERMS, QUESTIONS[:1], replies, lanes=1)
    for body in wire.bodies:
        assert (body["x_cache"], body["max_tokens"], body["model"]) == ({"mode": "bypass"}, 32, "m")
    assert len({json.dumps(body["messages"]) for body in wire.bodies}) == 1
    debates = [body for body in wire.bodies if "x_debate" in body]
    assert [body["x_debate"] for body in debates] == [
        {"strategy": "judge", "rounds": 1, "drafts": False},
        {"strategy": "vote", "rounds": 2, "drafts": False},
    ]
    assert {(body["x_route"], body["seed"], body.get("temperature")) for body in debates} == {("workflow", 100, None)}
    assert sorted(body["seed"] for body in wire.bodies if body.get("temperature") == 0.7) == list(range(100, 110))
    said = replies.get(QUESTIONS[0].id, "judge/1")
    assert said is not None
    assert (said.text, said.tokens, said.debate, said.trace_id) == ("42", 60, {"winner": "A"}, "0" * 32)


async def test_a_failure_is_counted_and_asked_again_next_time(replies: Replies) -> None:
    def failing(body: dict[str, Any]) -> httpx.Response:
        if body.get("temperature") == 0.7 and body["seed"] == 103:
            return httpx.Response(502, json={"error": {"message": "gone", "code": "upstream_failed"}})
        return priced(body)

    async with Wire(failing).client() as client:
        assert await ask_all(client, TERMS, QUESTIONS[:1], replies, lanes=1) == 1
    assert len(replies.samples(QUESTIONS[0].id)) == 3, "up to the one that failed"
    async with Wire(priced).client() as client:
        assert await ask_all(client, TERMS, QUESTIONS[:1], replies, lanes=1) == 0
    assert len(replies.samples(QUESTIONS[0].id)) == 10


async def test_a_stack_that_is_away_ends_the_run(replies: Replies) -> None:
    wire = Wire(lambda _: httpx.Response(503, json={"error": {"message": "away"}}))
    async with wire.client() as client:
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="in a row; the last: .*away")):
            await ask_all(client, TERMS, load(), replies, lanes=1)
    assert len(wire.bodies) == 10


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.Response(400, json={"error": {"message": "no such strategy", "code": "unsupported"}}), "no such strategy"),
        (httpx.Response(200, json={**completed(1).json(), "usage": None}), "no usage"),
    ],
)
async def test_a_refusal_ends_the_run(replies: Replies, answer: httpx.Response, says: str) -> None:
    wire = Wire(lambda body: answer if "x_debate" in body else priced(body))
    async with wire.client() as client:
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match=says)):
            await ask_all(client, TERMS, QUESTIONS, replies, lanes=1)
    assert replies.get(QUESTIONS[0].id, "single") is not None, "what was said is kept"
