"""One HTTP exchange with the API, read to its end, and how it ended from the client's point of view."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

# done: a whole answer. error: an honest error, before or inside the stream. broken: the connection was cut. left: we
# left on purpose. silent: the stream ended well as HTTP, with neither [DONE] nor an error. hung: nothing for too long.
End = Literal["done", "error", "broken", "left", "silent", "hung"]

_PATH = "/v1/chat/completions"


@dataclass
class Exchange:
    """What was asked, and what the client saw."""

    kind: str
    body: dict[str, Any]
    key: str | None = None
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    status: int | None = None
    trace_id: str | None = None
    cache: str = ""
    replayed: bool = False
    end: End = "hung"
    text: str = ""
    raw: bytes = b""
    error: str = ""
    trouble: str = ""  # a breach of the protocol that the client itself saw

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def debate(self) -> bool:
        return bool(self.body["model"] == "debate" or self.body.get("x_route") == "workflow")

    def note_head(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.trace_id = response.headers.get("x-trace-id")
        self.cache = response.headers.get("x-cache", "")
        self.replayed = response.headers.get("idempotent-replayed") == "true"


async def exchange(
    http: httpx.AsyncClient,
    kind: str,
    body: dict[str, Any],
    *,
    key: str | None = None,
    leave_after_s: float | None = None,
    most_s: float = 120.0,
) -> Exchange:
    """Ask, and read to the end; or leave after `leave_after_s`. Whatever happens is an Exchange, not an exception."""
    made = Exchange(kind, body, key)
    stay_s = most_s if leave_after_s is None else leave_after_s
    try:
        async with asyncio.timeout(stay_s):
            await _read(http, made)
    except TimeoutError:
        made.end = "hung" if leave_after_s is None else "left"
    except httpx.TimeoutException as error:
        made.end, made.error = "hung", repr(error)
    except httpx.HTTPError as error:
        made.end, made.error = "broken", repr(error)
    made.ended = time.time()
    return made


async def _read(http: httpx.AsyncClient, made: Exchange) -> None:
    headers = {"Idempotency-Key": made.key} if made.key else {}
    if made.body.get("stream"):
        async with http.stream("POST", _PATH, json=made.body, headers=headers) as response:
            made.note_head(response)
            if response.status_code == 200:
                await _read_stream(response, made)
            else:
                _read_error(await response.aread(), made)
        return
    response = await http.post(_PATH, json=made.body, headers=headers)
    made.note_head(response)
    if response.status_code != 200:
        _read_error(response.content, made)
        return
    made.raw = response.content
    made.text = response.json()["choices"][0]["message"]["content"]
    made.end = "done"


async def _read_stream(response: httpx.Response, made: Exchange) -> None:
    made.end = "silent"
    last_id, pieces = -1, []
    async for line in response.aiter_lines():
        if made.end != "silent" and line:
            made.trouble = f"after its end the stream said {line[:80]!r}"
        if line.startswith("id: "):
            if int(line[4:]) <= last_id:
                made.trouble = f"event id {line[4:]} after {last_id}"
            last_id = int(line[4:])
        elif line == "data: [DONE]":
            made.end = "done"
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                made.end, made.error = "error", str(chunk["error"].get("message"))
            elif chunk.get("choices"):
                pieces.append(chunk["choices"][0]["delta"].get("content") or "")
        made.text = "".join(pieces) if made.end != "silent" else ""


def _read_error(content: bytes, made: Exchange) -> None:
    made.end = "error"
    try:
        made.error = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        # The proxy's own word where no gateway is there to speak.
        made.error = content[:200].decode(errors="replace")
