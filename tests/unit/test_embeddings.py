"""The real embedding model, from its package."""

import asyncio
import math
import time
from collections.abc import Iterator

import pytest

from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.errors import BadRequest
from serve_app.settings import Settings


@pytest.fixture(scope="module")
def embedder() -> Iterator[OnnxEmbedder]:
    made = load_embedder(Settings(config="simulated", embedding_cache_size=4))
    yield made
    made.close()


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(embedder: OnnxEmbedder) -> None:
    texts = ["A cat.", "A much longer text about the trade routes of antiquity. " * 5, "Where is Rome?"]
    batch = await embedder.embed(texts)
    for text, vector in zip(texts, batch, strict=True):
        embedder._cache.clear()
        assert (await embedder.embed([text]))[0] == vector


async def test_vectors_have_length_one(embedder: OnnxEmbedder) -> None:
    for vector in await embedder.embed(["", "x", "longer " * 500]):
        assert len(vector) == embedder.dimensions == 384
        assert math.isclose(cosine(vector, vector), 1, abs_tol=1e-5)


async def test_paraphrases_are_nearer_than_unrelated_texts(embedder: OnnxEmbedder) -> None:
    asked, again, other = await embedder.embed(
        ["What is the capital of France?", "Which city is the capital of France?", "How do I bake sourdough bread?"]
    )
    assert cosine(asked, again) > 0.9
    assert cosine(asked, other) < 0.3


async def test_token_ids_give_the_vector_of_their_text(embedder: OnnxEmbedder) -> None:
    ids = embedder._tokenizer.encode("Where is Rome?").ids
    assert await embedder.embed_ids([ids, ids[1:-1]]) == await embedder.embed(["Where is Rome?"]) * 2


async def test_an_unknown_token_id_is_refused(embedder: OnnxEmbedder) -> None:
    with pytest.raises(BadRequest, match="token ids"):
        await embedder.embed_ids([[1, 10**6]])


async def test_what_is_beyond_the_limit_does_not_count(embedder: OnnxEmbedder) -> None:
    long = "word " * (embedder.max_tokens - 2)
    assert embedder.count_tokens(long) == embedder.max_tokens
    first, second = await embedder.embed([long, long + "and more that is cut"])
    assert first == second


def test_unknown_tokens_are_seen(embedder: OnnxEmbedder) -> None:
    assert embedder.has_unknown("ราคาเท่าไหร่")
    assert not embedder.has_unknown("How much is it?")


async def test_the_cache_is_bounded_and_drops_the_oldest(embedder: OnnxEmbedder) -> None:
    await embedder.embed([f"text {n}" for n in range(10)])
    assert len(embedder._cache) == 4


async def test_the_event_loop_goes_on_while_texts_are_embedded(embedder: OnnxEmbedder) -> None:
    work = asyncio.ensure_future(embedder.embed([f"{n} " + "long text " * 100 for n in range(20)]))
    pauses = []
    while not work.done():
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        pauses.append(time.perf_counter() - before)
    await work
    assert len(pauses) > 20  # a blocked loop would have turned once
