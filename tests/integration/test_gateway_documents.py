"""/v1/documents over a real socket: upload in each form, list, look up, delete, and what is refused."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.integration.gateway_server import GatewayUnderTest, serve_gateway
from tests.pdf_files import a_pdf


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway(document_max_bytes=20_000) as server:
        yield server


async def text_of(gateway: GatewayUnderTest, document_id: str, project: str = "p") -> str:
    found = await gateway.lifecycle.documents.find(project, document_id)
    assert found is not None
    return found.content


async def test_a_text_is_stored_and_waits_to_be_chunked(http: httpx.AsyncClient, gateway: GatewayUnderTest) -> None:
    sent = await http.post("/v1/documents", json={"name": "notes", "text": "Käse"})
    assert sent.status_code == 202
    document = sent.json()
    assert document["object"] == "document"
    assert (document["name"], document["bytes"], document["status"]) == ("notes", 5, "pending")
    assert sent.headers["location"] == f"/v1/documents/{document['id']}"
    assert (await http.get(sent.headers["location"])).json() == document
    assert await text_of(gateway, document["id"]) == "Käse"
    again = (await http.post("/v1/documents", json={"name": "notes", "text": "Brot"})).json()
    assert again["id"] == document["id"], "the same name is the same document"
    assert await text_of(gateway, document["id"]) == "Brot"


async def test_a_chunked_document_is_ready_and_the_same_again_stays_so(
    http: httpx.AsyncClient, gateway: GatewayUnderTest
) -> None:
    document = (await http.post("/v1/documents", json={"name": "notes", "text": "One."})).json()
    documents = gateway.lifecycle.documents
    [waiting] = await documents.stale("p", made_with="hash/4/48-40/v1", limit=5)
    found = await documents.find("p", waiting)
    assert found is not None
    await documents.replace_chunks(found, [], made_with="hash/4/50-40/v1")
    again = await http.post("/v1/documents", json={"name": "notes", "text": "One."})
    assert (again.status_code, again.json()["status"], again.json()["id"]) == (200, "ready", document["id"])


@pytest.mark.parametrize(
    ("name", "raw", "media_type", "text"),
    [
        ("a.pdf", a_pdf(["Hello there"]), "application/pdf", "Hello there"),
        ("a.html", b"<h1>Hi</h1><p>there</p>", "text/html", "# Hi\n\nthere"),
        ("a.md", b"# Hi\r\nthere", "application/octet-stream", "# Hi\nthere"),
    ],
)
async def test_a_file_is_taken_as_a_form_and_as_base64(
    http: httpx.AsyncClient, gateway: GatewayUnderTest, name: str, raw: bytes, media_type: str, text: str
) -> None:
    form = await http.post("/v1/documents", files={"file": (name, raw, media_type)}, data={"purpose": "x", "x_project": "q"})
    assert form.status_code == 202, form.text
    assert form.json()["name"] == name
    assert await text_of(gateway, form.json()["id"], "q") == text
    body = {"name": "other", "content": base64.b64encode(raw).decode(), "media_type": media_type}
    if media_type == "application/octet-stream":
        body["name"] = "other.md"
    sent = await http.post("/v1/documents", json=body)
    assert sent.status_code == 202, sent.text
    assert await text_of(gateway, sent.json()["id"]) == text


async def test_a_form_may_name_its_file(http: httpx.AsyncClient) -> None:
    sent = await http.post("/v1/documents", files={"file": ("x.txt", b"text")}, data={"name": "Handbook"})
    assert sent.json()["name"] == "Handbook"


async def test_documents_are_listed_page_by_page_and_deleted(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/documents")).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    for number in range(3):
        await http.post("/v1/documents", json={"name": f"{number}", "text": "x"})
    first = (await http.get("/v1/documents?limit=2")).json()
    rest = (await http.get(f"/v1/documents?limit=2&after={first['last_id']}")).json()
    assert [d["name"] for d in first["data"] + rest["data"]] == ["0", "1", "2"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    gone = first["data"][0]["id"]
    assert (await http.delete(f"/v1/documents/{gone}")).json()["deleted"] is True
    for missing in (await http.get(f"/v1/documents/{gone}"), await http.delete(f"/v1/documents/{gone}")):
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "document_not_found")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"text": "x"}, "name", "missing_required_parameter"),
        ({"name": "a"}, "text", "invalid_value"),
        ({"name": "a", "text": "x", "content": "eA=="}, "text", "invalid_value"),
        ({"name": "a", "text": "x", "titel": "y"}, "titel", "invalid_value"),
        ({"name": "a\nb", "text": "x"}, "name", "invalid_value"),
        ({"name": "a.png", "content": "eA=="}, "media_type", "unsupported"),
        ({"name": "a", "text": "x", "media_type": "image/png"}, "media_type", "unsupported"),
        ({"name": "a.txt", "content": "no base64"}, "content", "invalid_value"),
        ({"name": "a.pdf", "content": "eA=="}, "file", "unreadable_document"),
        ({"name": "a.txt", "content": "//4="}, "file", "unreadable_document"),
        ({"name": "a", "text": " \n"}, "file", "unreadable_document"),
        ({"name": "a", "text": "x\u0000"}, "file", "unreadable_document"),
    ],
)
async def test_refused(http: httpx.AsyncClient, body: dict[str, Any], param: str, code: str) -> None:
    response = await http.post("/v1/documents", json=body)
    assert response.status_code == 400
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (param, code)
    assert (await http.get("/v1/documents")).json()["data"] == []


async def test_forms_that_cannot_be_read(http: httpx.AsyncClient) -> None:
    broken = await http.post("/v1/documents", content=b"x", headers={"content-type": "multipart/form-data"})
    no_file = await http.post("/v1/documents", files={"other": ("a.txt", b"x")})
    two = await http.post("/v1/documents", files=[("file", ("a.txt", b"x")), ("file", ("b.txt", b"x"))])
    for response in (broken, no_file, two):
        assert response.status_code == 400, response.text


async def test_a_large_document_is_refused(http: httpx.AsyncClient) -> None:
    for response in (
        await http.post("/v1/documents", json={"name": "a", "text": "x" * 20_001}),
        await http.post("/v1/documents", files={"file": ("a.txt", b"x" * 200_000)}),
    ):
        assert response.status_code == 413
        assert "document_max_bytes" in response.json()["error"]["message"] or "body" in response.json()["error"]["message"]


async def test_a_key_is_needed_and_only_for_its_projects(gateway: GatewayUnderTest, http: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as stranger:
        for call in (stranger.get("/v1/documents"), stranger.post("/v1/documents", json={"name": "a", "text": "x"})):
            assert (await call).status_code == 401
    assert (await http.post("/v1/documents", json={"name": "a", "text": "x", "x_project": "z"})).status_code == 403
    assert (await http.get("/v1/documents?limit=0")).json()["error"]["param"] == "limit"
