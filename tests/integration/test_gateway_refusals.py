"""Bad input gets a clear error in OpenAI's shape, and afterwards everything still works."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from serve_app.errors import RateLimited
from serve_app.gateway.http_app import error_response
from tests.integration.gateway_server import KEY, GatewayUnderTest, serve_gateway

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway(max_body_bytes=100_000) as server:
        yield server


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "nope", "messages": USER}, 404, "model", "model_not_found"),
        ({"model": "m:nope", "messages": USER}, 404, "model", "model_not_found"),
        ({"model": "m", "messages": USER, "x_adapter": "nope"}, 404, "model", "model_not_found"),
        ({"model": "m", "messages": USER, "x_rote": "direct"}, 400, "x_rote", "unknown_parameter"),
        ({"model": "m", "messages": []}, 400, "messages", "invalid_value"),
        ({"model": "m"}, 400, "messages", "missing_required_parameter"),
        ({"messages": USER}, 400, "model", "missing_required_parameter"),
        ({"model": "m", "messages": USER, "max_tokens": -1}, 400, "max_tokens", "invalid_value"),
        ({"model": "m", "messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role", "invalid_value"),
        ({"model": "m", "messages": USER, "temperature": 9}, 400, "temperature", "invalid_value"),
        ({"model": "m", "messages": USER, "x_cache": {"mode": "sometimes"}}, 400, "x_cache.mode", "invalid_value"),
        ({"model": "m", "messages": USER, "x_cache": {"treshold": 1}}, 400, "x_cache.treshold", "invalid_value"),
        ({"model": "m", "messages": USER, "x_project": "other"}, 403, "x_project", "project_forbidden"),
        ({"model": "m", "messages": USER, "stream": "x"}, 400, "stream", "invalid_value"),
        ({"model": "m", "messages": USER, "stream_options": 3}, 400, "stream_options", "invalid_value"),
        ({"model": "m", "messages": [{"role": "assistant", "tool_calls": 5}]}, 400, "messages[0].tool_calls", "invalid_value"),
        ({"model": "debate", "messages": USER, "x_debate": {"strategy": "duel"}}, 400, "x_debate.strategy", "invalid_value"),
        ({"model": "m", "messages": USER, "x_debate": {}}, 400, "x_debate", "invalid_value"),
        ({"model": "m", "messages": USER, "x_rag": {}}, 400, "x_rag", "invalid_value"),
        ({"model": "m", "messages": USER, "x_route": "workflow", "x_rag": {"top_k": 2}}, 400, "x_rag", "invalid_value"),
        ({"model": "m", "messages": USER, "x_route": "rag", "x_rag": {"top_n": 2}}, 400, "x_rag.top_n", "invalid_value"),
        ({"model": "m", "messages": USER, "x_route": "rag", "x_rag": {"top_k": 0}}, 400, "x_rag.top_k", "invalid_value"),
        ({"model": "m", "messages": USER, "x_route": "rag", "x_rag": {"sources": "yes"}}, 400, "x_rag.sources", "invalid_value"),
    ],
)
async def test_refused(http: httpx.AsyncClient, body: dict[str, Any], status: int, param: str, code: str) -> None:
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert len(response.headers["x-trace-id"]) == 32


async def test_broken_json_says_where(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", content=b'{"model": "m",\n "messages": [}')
    assert response.status_code == 400
    assert "line 2" in response.json()["error"]["message"]
    assert (await http.post("/v1/chat/completions", content=b"[]")).status_code == 400


async def test_deep_nesting_is_refused(http: httpx.AsyncClient) -> None:
    deep = b'{"model": "m", "messages": [], "foo": ' + b"[" * 300 + b"]" * 300 + b"}"
    response = await http.post("/v1/chat/completions", content=deep)
    assert response.status_code == 400
    assert "nested" in response.json()["error"]["message"]


async def test_null_means_unset(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={"model": "m", "messages": USER, "stream": None, "max_tokens": None})
    assert response.status_code == 200


@pytest.mark.parametrize("name", ["%00", "x", "A" * 32, "0" * 32])
async def test_run_names_that_cannot_be_or_that_nobody_has(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/v1/runs/{name}")).status_code == 404
    assert (await http.post(f"/v1/runs/{name}/cancel")).status_code == 404


async def test_completions_check_the_project(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"model": "m", "prompt": "x", "x_project": "other"})
    assert response.status_code == 403


@pytest.mark.parametrize("declared", [True, False])
async def test_large_body_is_refused_before_it_is_read(http: httpx.AsyncClient, declared: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 10_000

    content: Any = b"x" * 200_000 if declared else parts()
    response = await http.post("/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic abc", "Bearer"])
async def test_wrong_key(gateway: GatewayUnderTest, header: str | None) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        for path in ("/v1/models", "/v1/runs/x"):
            response = await http.get(path, headers={"Authorization": header} if header else {})
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"


async def test_unknown_path_and_method(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nope")).json()["error"]["code"] == "not_found"
    assert (await http.get("/v1/chat/completions")).status_code == 405


async def test_probes_need_no_key_and_tell_nothing_else(gateway: GatewayUnderTest) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).json()["ready"] is True


async def test_request_id_is_echoed_or_made(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models", headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
    assert len((await http.get("/v1/models")).headers["x-request-id"]) == 32


async def test_models_and_embeddings_with_the_sdk(gateway: GatewayUnderTest) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        ids = [model.id async for model in client.models.list()]
        assert ids == ["m", "m:poet", "hash", "debate"]
        assert (await client.models.retrieve("m:poet")).id == "m:poet"
        made = await client.embeddings.create(model="hash", input=["same", "same"])  # asks for base64
        assert made.data[0].embedding == [1.0, 0.0, 0.0, 0.0]
        as_floats = await client.embeddings.create(model="hash", input="same", encoding_format="float")
        assert as_floats.data[0].embedding == made.data[0].embedding
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            await client.embeddings.create(model="hash", input="x", dimensions=3)
        with pytest.raises(openai.BadRequestError, match="empty"):
            await client.embeddings.create(model="hash", input=[])
        completion = await client.completions.create(model="m", prompt="The capital of France is")
        assert completion.choices[0].text == "Paris"


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "1"), (2.4, "3"), (15, "15"), (900, "120")])
def test_who_comes_back_when_told_is_not_too_early(seconds: float, told: str) -> None:
    assert error_response(RateLimited("too fast", retry_after_s=seconds)).headers["retry-after"] == told


async def test_everything_still_works_after_all_that(http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", content=b"\xff\xfe")
    response = await http.post("/v1/chat/completions", json={"model": "m", "messages": USER})
    assert response.status_code == 200
