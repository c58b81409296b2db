"""Embeddings over HTTP: in every form of `input`, for every project of the key, with the headers of all answers."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.embeddings import OnnxEmbedder
from serve_app.limits import Limits, project_subject
from tests.integration.gateway_server import GatewayUnderTest, serve_gateway
from tests.integration.test_gateway_limits import open_house

PATH = "/v1/embeddings"
TEXT = "Where is Rome?"


@pytest.fixture
async def gateway(embedder: OnnxEmbedder) -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway({"embedder": embedder}) as served:
        yield served


def ask(embedder: OnnxEmbedder, value: Any, **fields: Any) -> dict[str, Any]:
    return {"model": embedder.model_id, "input": value, **fields}


async def test_token_ids_are_embedded_as_the_text_that_they_are(http: httpx.AsyncClient, embedder: OnnxEmbedder) -> None:
    ids = embedder._tokenizer.encode(TEXT).ids
    (text,) = (await http.post(PATH, json=ask(embedder, TEXT))).json()["data"]
    one = (await http.post(PATH, json=ask(embedder, ids))).json()
    assert [entry["embedding"] for entry in one["data"]] == [text["embedding"]]
    assert one["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    two = (await http.post(PATH, json=ask(embedder, [ids, ids[:3]], encoding_format="base64"))).json()
    assert [entry["index"] for entry in two["data"]] == [0, 1]
    vectors = [np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in two["data"]]
    assert vectors[0].tolist() == np.asarray(text["embedding"], dtype="<f4").tolist()
    assert not np.allclose(vectors[0], vectors[1])
    assert two["usage"]["total_tokens"] == len(ids) + 3


@pytest.mark.parametrize("value", [[1, 10**6], [[1, 2], [-1]]])
async def test_a_token_id_that_the_model_does_not_have_is_refused(
    http: httpx.AsyncClient, embedder: OnnxEmbedder, value: list[Any]
) -> None:
    response = await http.post(PATH, json=ask(embedder, value))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
    assert "token ids" in response.json()["error"]["message"]


async def test_every_answer_has_the_headers_that_name_it(http: httpx.AsyncClient, embedder: OnnxEmbedder) -> None:
    for body, status in ((ask(embedder, TEXT), 200), ({"model": "nope", "input": TEXT}, 404)):
        response = await http.post(PATH, json=body)
        assert response.status_code == status
        assert len(response.headers["x-trace-id"]) == 32
        assert (response.headers["x-route"], response.headers["x-cache"]) == ("direct", "bypass")


async def test_the_project_is_checked_as_in_a_chat(http: httpx.AsyncClient, embedder: OnnxEmbedder) -> None:
    assert (await http.post(PATH, json=ask(embedder, TEXT, x_project="q"))).status_code == 200
    refused = await http.post(PATH, json=ask(embedder, TEXT, x_project="other"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "project_forbidden")


async def test_unknown_fields_are_treated_as_in_a_chat(http: httpx.AsyncClient, embedder: OnnxEmbedder) -> None:
    assert (await http.post(PATH, json=ask(embedder, TEXT, input_type="query"))).status_code == 200
    refused = await http.post(PATH, json=ask(embedder, TEXT, x_projekt="q"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x_projekt")


async def test_the_project_that_the_key_acts_for_is_charged(postgres_dsn: str) -> None:
    async with open_house(postgres_dsn) as house:
        for project in ("p", "q"):
            await house.limits.set_of_project(project, Limits(tokens=1000, period="day"))
        async with house.http(await house.key()) as http:
            response = await http.post(PATH, json={"model": "hash", "input": "three words long", "x_project": "q"})
            assert response.status_code == 200
        used = {entry.subject: entry.used for entry in await house.limits.list()}
    assert (used[project_subject("p")], used[project_subject("q")]) == (0, 3)
