"""The guards on the wire: the embedding model of the product, its guards, a gateway on a socket."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.embeddings import OnnxEmbedder
from serve_app.lifecycle import recall
from serve_app.telemetry import logger
from tests.integration.gateway_server import GatewayUnderTest, ask, serve_gateway

WAIT_S = 60.0


@pytest.fixture
async def gateway(embedder: OnnxEmbedder) -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway({"embedder": embedder}, cache_verify_share=0.0) as served:
        yield served


@pytest.fixture
def vetoes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rules that are counted, in order. Ray, which holds the counter, does not run here."""
    counted: list[str] = []

    def record(name: str, amount: float = 1, **tags: str) -> None:
        if name == "aifactory_cache_vetoes_total":
            counted.append(tags["rule"])

    monkeypatch.setattr(recall, "count", record)
    return counted


@pytest.mark.parametrize(
    ("rule", "stored", "asked", "paraphrase"),
    [
        ("numbers", "What is the battery life of the phone 14?", "What is the battery life of the phone 15?", "what's {}"),
        ("negation", "Which planets have rings?", "Which planets have no rings?", "Please tell me: {}"),
        ("questions", "When did the shop open?", "When will the shop open?", "Hi! {} Thanks"),
        ("entities", "Is CO a poisonous gas?", "Is Co a poisonous gas?", "Do you know: {}"),
        ("roles", "How do I fly from Paris to Rome?", "How do I fly from Rome to Paris?", "Could you please tell me: {}"),
    ],
)
async def test_a_vetoed_neighbour_is_no_answer_and_a_paraphrase_is_one(
    rule: str, stored: str, asked: str, paraphrase: str, http: httpx.AsyncClient, gateway: GatewayUnderTest, vetoes: list[str]
) -> None:
    logged: list[str] = []
    sink = logger.add(lambda line: logged.append(str(line)), level="INFO", format="{message} {extra}")
    try:
        first = await ask(http, stored)
        gateway.replicas.words = ["Something ", "else."]
        other = await ask(http, asked, x_cache={"threshold": 0.8})
    finally:
        logger.remove(sink)
    assert (first.headers["x-cache"], other.headers["x-cache"]) == ("miss", "miss")
    assert other.json()["choices"][0]["message"]["content"] == "Something else."
    assert vetoes == [rule], "the neighbour was found, and one guard objected"
    assert any(rule in line for line in logged)
    assert not any(stored in line or asked in line for line in logged), "a log line quotes a question"

    hit = await ask(http, paraphrase.format(stored.removeprefix("What is ")), x_cache={"threshold": 0.8})
    assert (hit.headers["x-cache"], hit.headers["x-cache-provisional"]) == ("semantic", "true")
    assert hit.json()["x_factory"]["cache"]["provisional"] is True
    assert hit.json()["choices"] == first.json()["choices"]
    assert gateway.replicas.calls == 2


async def test_the_last_chunk_of_a_replayed_stream_says_that_it_is_provisional(http: httpx.AsyncClient) -> None:
    await ask(http, "How do I boil an egg?")
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "how to boil an egg"}]}
    reply = await http.post("/v1/chat/completions", json=body)
    assert reply.headers["x-cache-provisional"] == "true"
    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert [chunk["x_factory"]["cache"]["provisional"] for chunk in chunks if "x_factory" in chunk] == [True]


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("東京の天気は?", "京都の天気は?"),
        ("Сколько стоит билет?", "Сколько стоит билет ?"),
        ("ما هي عاصمة فرنسا؟", "ما هي عاصمة ألمانيا؟"),
        ("ราคาเท่าไหร่", "ราคาเท่าไร"),
        ("What does 😀 mean?", "What does 😢 mean?"),
        ("👍", "👎"),
        (" ", "  "),
        ("\n\t", "\u00a0"),
        ("a " * 50_000 + "yes", "a " * 50_000 + "no"),
        ("Is it true? " * 8_400 + "Yes", "Is it true? " * 8_400 + "No"),
    ],
    ids=[
        "japanese",
        "russian",
        "arabic",
        "thai",
        "emoji in english",
        "emoji",
        "blank",
        "white space",
        "100 kB",
        "100 kB of words",
    ],
)
async def test_what_cannot_be_compared_is_answered_by_its_exact_twin_only(
    stored: str, asked: str, http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    for number, text in enumerate((stored, asked), 1):
        reply = await ask(http, text, x_cache={"threshold": 0})
        assert (reply.headers["x-cache"], gateway.replicas.calls) == ("miss", number)
    assert (await ask(http, stored, x_cache={"threshold": 0})).headers["x-cache"] == "exact"
