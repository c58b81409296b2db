"""From a checked body to an Ask: which route, which model, whose project, how the cache is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app import debates
from serve_app.configured import DEBATE_MODEL_ID
from serve_app.errors import BadRequest, Forbidden, NotFound
from serve_app.gateway.schema import ChatRequest
from serve_app.lifecycle.reply import Ask
from serve_app.lifecycle.research import rag_terms
from serve_app.limits import Account
from serve_app.ports import Replicas
from serve_app.runs import CachePolicy, Question, Route, answer_params
from serve_app.settings import Settings

# What a debate cannot carry: its answer is one text. Refused, because dropping it silently would answer another question.
_NOT_IN_A_DEBATE = (
    "tools", "functions", "tool_choice", "function_call", "n", "logprobs", "top_logprobs", "prompt_logprobs", "modalities",
    "return_token_ids",
    "continue_final_message", "add_generation_prompt",  # debaters, judge and writer answer messages of their own making
)  # fmt: skip
_NO_EFFECT: Mapping[str, object] = {
    "n": 1, "logprobs": False, "tool_choice": "none", "modalities": ["text"], "return_token_ids": False,
    "continue_final_message": False, "add_generation_prompt": True,
}  # fmt: skip
_KEY_MAX = 255


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the project of the API key, and the others it may act for."""

    project: str
    projects: tuple[str, ...] = ()
    key_id: str = ""
    limited: frozenset[str] = frozenset()  # which of the key and its projects have limits, as limits name them

    def account(self, project: str) -> Account | None:
        """Who is charged for a request in `project`: nobody where neither it nor the key has a limit."""
        account = Account(self.key_id, project)
        return None if self.limited.isdisjoint(account.subjects) else account

    def acting_for(self, project: str | None) -> str:
        """The project of a request. Raises Forbidden when the key may not use it."""
        if project is None or project == self.project:
            return self.project
        if project not in self.projects:
            raise Forbidden(f"this API key may not act for project {project!r}", param="x_project", code="project_forbidden")
        return project


def build_ask(
    request: ChatRequest,
    body: dict[str, Any],
    *,
    trace_id: str,
    caller: Caller,
    headers: Mapping[str, str],
    settings: Settings,
    replicas: Replicas,
    traceparent: str | None = None,
) -> Ask:
    """The Ask behind a chat request. Raises BadRequest, Forbidden or NotFound that name the field."""
    route = _route(request)
    if route == "workflow":
        _refuse_what_a_debate_drops(body)
        asked = None if request.model == DEBATE_MODEL_ID else request.model
        spec = debates.resolve_debate(
            request.x_debate or debates.DebateField(), settings, _known(replicas), model=asked, adapter=request.x_adapter
        )
        model, adapter = DEBATE_MODEL_ID, None
    else:
        spec = None
        model, adapter = resolve_model(request.model, request.x_adapter, replicas)
    question = Question(
        project=caller.acting_for(request.x_project),
        route=route,
        model=model,
        adapter=adapter,
        messages=body["messages"],
        params=answer_params(body),
        debate=spec,
        rag=rag_terms(settings, request.x_rag.top_k if request.x_rag else None) if route == "rag" else None,
    )
    return Ask(
        trace_id=trace_id,
        question=question,
        cache=cache_policy(request, headers, settings),
        timeout_s=request.x_timeout_s or settings.request_timeout_s,
        idempotency_key=_idempotency_key(headers),
        key_id=caller.key_id if caller.account(question.project) else None,
        traceparent=traceparent,
    )


def resolve_model(model: str, adapter: str | None, replicas: Replicas) -> tuple[str, str | None]:
    """Base model and adapter of an id like `base` or `base:adapter`. Raises NotFound that lists the known ids."""
    return debates.resolve_model(model, adapter, _known(replicas))


def cache_policy(request: ChatRequest, headers: Mapping[str, str], settings: Settings) -> CachePolicy:
    """How the cache is used: x_cache wins over Cache-Control. A cache that is off is not used: NotFound for `only`."""
    field = request.x_cache
    directives = {part.strip().lower() for part in headers.get("cache-control", "").split(",")}
    mode = "bypass" if "no-store" in directives else "refresh" if "no-cache" in directives else "use"
    if field is not None and "mode" in field.model_fields_set:
        mode = field.mode
    if not settings.cache_enabled:
        if mode == "only":
            raise NotFound("the cache is off (setting cache_enabled): it has no answer", param="x_cache", code="cache_miss")
        mode = "bypass"
    return CachePolicy(
        mode=mode,  # type: ignore[arg-type]  # one of the five, by construction
        threshold=settings.cache_threshold if field is None or field.threshold is None else field.threshold,
        ttl_s=settings.cache_ttl_s if field is None or field.ttl_s is None else field.ttl_s,
    )


def _known(replicas: Replicas) -> list[str]:
    cards = replicas.cards()
    return [card.model_id for card in cards] + [f"{card.model_id}:*" for card in cards if card.any_adapter]


def _route(request: ChatRequest) -> Route:
    route = request.x_route or ("workflow" if request.model == DEBATE_MODEL_ID else "direct")
    if request.model == DEBATE_MODEL_ID and route != "workflow":
        raise BadRequest(
            f"model 'debate' means x_route=workflow, but x_route is {route!r}", param="x_route", code="invalid_value"
        )
    if request.x_rag is not None and route != "rag":
        raise BadRequest(f"x_rag needs x_route=rag, but x_route is {route!r}", param="x_rag", code="invalid_value")
    if request.x_debate is not None and route != "workflow":
        raise BadRequest("x_debate needs x_route=workflow or model 'debate'", param="x_debate", code="invalid_value")
    if request.x_cache is not None and request.x_cache.mode == "provisional" and route != "workflow":
        raise BadRequest(
            "x_cache.mode 'provisional' needs x_route=workflow or model 'debate'",
            param="x_cache",
            code="invalid_value",
        )
    return route


def _refuse_what_a_debate_drops(body: dict[str, Any]) -> None:
    for name in _NOT_IN_A_DEBATE:
        value = body.get(name)
        if value is not None and value != _NO_EFFECT.get(name):
            raise BadRequest(
                f"{name!r} is not supported in a debate; leave it out or use x_route=direct", param=name, code="unsupported"
            )
    for number, message in enumerate(body["messages"]):
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") != "text" for part in content):
            raise BadRequest("a debate takes text only", param=f"messages[{number}].content", code="unsupported")


def _idempotency_key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= _KEY_MAX or not key.isprintable():
        raise BadRequest(
            f"Idempotency-Key must have 1 to {_KEY_MAX} printable characters", param="Idempotency-Key", code="invalid_value"
        )
    return key
