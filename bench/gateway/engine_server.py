"""The bare engine: an OpenAI server in front of the simulated models, no gateway. What vLLM's own server would be.

python -m bench.gateway.engine_server PORT
"""

import sys
import uuid

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from bench.gateway.simulated_openai import SimulatedModels, frames, whole
from bench.gateway.work import SIMULATED

_MODELS = SimulatedModels()


async def chat(request: Request) -> Response:
    body = orjson.loads(await request.body())
    chunks = _MODELS.chunks(body, uuid.uuid4().hex)
    if body.get("stream"):
        return StreamingResponse(frames(chunks), media_type="text/event-stream")
    return _json(await whole(chunks))


async def models(_: Request) -> Response:
    return _json({"object": "list", "data": [{"id": name, "object": "model", "created": 0} for name in SIMULATED]})


async def health(_: Request) -> Response:
    return Response()


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


_ROUTES = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/models", models),
    Route("/health", health),
]

if __name__ == "__main__":
    uvicorn.run(Starlette(routes=_ROUTES), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
