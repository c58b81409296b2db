"""The request bodies: what the gateway checks itself. What it does not name passes through to the engine.

Wrong values of standard fields that the engine checks well (and knows the limits of) are left to it; what the engine
would accept silently (unknown extension fields, unknown roles, an unknown model) is refused here.
"""

from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serve_app.debates import DebateField
from serve_app.errors import BadRequest

T = TypeVar("T", bound=BaseModel)
_UNION_TAGS = frozenset({"str", "int"})  # pydantic puts the branch of a union into the path
_DEEPEST = 64  # levels of JSON; more cannot be written again

EXTENSIONS = ("x_route", "x_adapter", "x_project", "x_cache", "x_debate", "x_rag", "x_timeout_s")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CacheField(_Closed):
    """x_cache: how the cache is used for this request."""

    mode: Literal["use", "refresh", "bypass", "only", "provisional"] = "use"
    threshold: float | None = Field(None, ge=0, le=1)
    ttl_s: int | None = Field(None, ge=1, le=31_536_000)


class RagField(_Closed):
    """x_rag: how documents are used for this request. `sources`: tell which passages the answer rests on."""

    top_k: int | None = Field(None, ge=1, le=50)
    sources: bool = False


class DocumentRequest(_Closed):
    """POST /v1/documents with a JSON body: `text`, or `content` (base64 of a file) with its `media_type`."""

    name: str = Field(min_length=1, max_length=512)
    text: str | None = None
    content: str | None = None
    media_type: str | None = Field(None, max_length=128)
    x_project: str | None = Field(None, min_length=1, max_length=128)


class Message(BaseModel):
    """One message; parts, tool calls and names pass through as they are."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=512)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    x_adapter: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,128}$")
    x_project: str | None = Field(None, min_length=1, max_length=128)
    x_timeout_s: float | None = Field(None, gt=0, le=86_400)


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    x_route: Literal["direct", "rag", "workflow"] | None = None
    x_cache: CacheField | None = None
    x_debate: DebateField | None = None
    x_rag: RagField | None = None


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: str | list[Any]


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings. Unknown fields have no effect, as in a chat; unknown extension fields are refused there and here."""

    model: str = Field(min_length=1)
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None
    x_project: str | None = Field(None, min_length=1, max_length=128)

    @field_validator("input")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if len(value) == 0 or (isinstance(value, list) and any(hasattr(v, "__len__") and len(v) == 0 for v in value)):
            raise ValueError("must not be empty, nor hold an empty element")
        if isinstance(value, list) and len(value) > 2048 and not isinstance(value[0], int):
            raise ValueError("must have at most 2048 elements")
        return value


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises BadRequest that says where the JSON breaks."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    if _deeper_than(value, _DEEPEST):
        raise BadRequest(f"the body is nested deeper than {_DEEPEST} levels", code="invalid_json")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    row: list[Any] = [value]
    for _ in range(levels):
        row = [
            inner
            for outer in row
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not row:
            return False
    return True


def check(schema: type[T], body: dict[str, Any]) -> T:
    """The body as `schema`. Raises BadRequest that names the field, what is wrong and the allowed values."""
    for name in body:
        if name.startswith("x_") and name not in schema.model_fields:
            known = ", ".join(n for n in EXTENSIONS if n in schema.model_fields) or "none"
            raise BadRequest(f"unknown extension field {name!r}; known ones here: {known}", param=name, code="unknown_parameter")
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise _first_fault(error) from None


def _first_fault(error: ValidationError) -> BadRequest:
    faults = error.errors(include_url=False, include_context=False)
    # Of a union's many complaints the deepest one is about what the caller meant.
    fault = max(faults, key=lambda f: len(f["loc"])) if faults[0]["loc"][:1] == ("input",) else faults[0]
    param = ""
    for part in fault["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part not in _UNION_TAGS and not part.startswith("list["):
            param += f".{part}" if param else part
    if fault["type"] == "missing":
        return BadRequest(f"missing required field {param!r}", param=param, code="missing_required_parameter")
    return BadRequest(f"invalid {param!r}: {fault['msg']}", param=param, code="invalid_value")
