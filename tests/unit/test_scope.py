"""What makes two questions the same, field by field: built by the gateway's own code, from bodies as clients send them."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import orjson
import pytest

from serve_app.bus.run_json import decode_run, encode_run
from serve_app.configured import DebateConfig, ModelConfig
from serve_app.errors import BadRequest
from serve_app.gateway.asks import Caller, build_ask
from serve_app.gateway.schema import ChatRequest, check, parse_object
from serve_app.ports import ModelCard
from serve_app.runs import Question, Run
from serve_app.settings import Settings

SETTINGS = Settings(config="simulated", models=[ModelConfig(model_id="m", engine="simulated")], debate=DebateConfig())
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"q": {}}}},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
TASKS = [{"task": "A", "model": "m"}, {"task": "B", "model": "m"}]
DIRECT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0.5,
}
RAG: dict[str, Any] = {**DIRECT, "x_route": "rag", "x_rag": {"top_k": 3}}
DEBATE: dict[str, Any] = {**DIRECT, "model": "debate", "x_debate": {"tasks": TASKS, "rounds": 1, "strategy": "judge"}}


class _Replicas:
    """The models that a gateway knows."""

    def cards(self) -> list[ModelCard]:
        return [ModelCard("m"), ModelCard("m2"), ModelCard("m:poet", parent="m"), ModelCard("m:bard", parent="m")]


def asked(body: dict[str, Any] | bytes, *, project: str = "p", headers: dict[str, str] | None = None) -> Question:
    """The question behind a body, through the gateway's own parsing and checks."""
    raw = parse_object(body if isinstance(body, bytes) else orjson.dumps(body))
    ask = build_ask(
        check(ChatRequest, raw),
        raw,
        trace_id="0" * 32,
        caller=Caller(project, ("q", "p ")),
        headers=headers or {},
        settings=SETTINGS,
        replicas=_Replicas(),  # type: ignore[arg-type]  # it is asked for its cards only
    )
    corpus = "c1" if ask.question.route == "rag" else None
    return replace(ask.question, corpus=corpus)


def with_last(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The body with another last message; a value of None takes the field away."""
    body = deepcopy(base)
    body["messages"][-1] = {k: v for k, v in {**body["messages"][-1], **changes}.items() if v is not None}
    return body


def with_earlier(*messages: dict[str, Any]) -> dict[str, Any]:
    return {**DIRECT, "messages": [*messages, DIRECT["messages"][-1]]}


def debate(**changes: Any) -> dict[str, Any]:
    return {**DEBATE, "x_debate": {**DEBATE["x_debate"], **changes}}


def spoken(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


QUESTION = DIRECT["messages"][-1]["content"]
SYSTEM = DIRECT["messages"][0]
ANSWER_FIELDS: dict[str, Any] = {
    **{"temperature": 0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "n": 2, "max_tokens": 5, "max_completion_tokens": 5},
    **{"stop": ["x"], "stop_token_ids": [2], "include_stop_str_in_output": True, "ignore_eos": True, "min_tokens": 3},
    **{"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1, "logit_bias": {"5": 1}, "bad_words": ["x"]},
    **{"frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.1, "length_penalty": 0.9},
    **{"use_beam_search": True, "allowed_token_ids": [1], "skip_special_tokens": False, "echo": True},
    **{"tools": [TOOL], "tool_choice": "required", "functions": [TOOL["function"]], "parallel_tool_calls": False},
    **{"response_format": SCHEMA, "structured_outputs": {"choice": ["a", "b"]}, "guided_json": {"type": "object"}},
    **{"reasoning_effort": "low", "include_reasoning": False, "thinking_token_budget": 9, "verbosity": "low"},
    **{"chat_template": "x", "chat_template_kwargs": {"enable_thinking": False}, "documents": [{"text": "x"}]},
    **{"add_generation_prompt": False, "continue_final_message": True, "add_special_tokens": True},
    **{"truncate_prompt_tokens": 9, "truncation_side": "left", "mm_processor_kwargs": {"a": 1}, "vllm_xargs": {"a": 1}},
    **{"return_token_ids": True, "cache_salt": "mine", "modalities": ["text"], "prediction": {"type": "content", "content": "x"}},
    **{"a_field_of_tomorrow": 1},
}
TASK_CHANGES: dict[str, dict[str, Any]] = {
    **{"label": {"task": "Z"}, "model": {"model": "m2"}, "adapter": {"adapter": "poet"}},
    **{"system": {"system": "Doubt."}, "temperature": {"temperature": 0.1}},
}
DEBATE_CHANGES: dict[str, Any] = {"rounds": 2, "strategy": "vote", "judge_model": "m2", "quorum": 2, "token_budget": 500}
OTHER_QUESTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: (DIRECT, {**DIRECT, name: value}) for name, value in ANSWER_FIELDS.items()},
    "temperature left out": (DIRECT, {k: v for k, v in DIRECT.items() if k != "temperature"}),
    "a whole number for a fraction": ({**DIRECT, "top_p": 1}, {**DIRECT, "top_p": 1.0}),
    "true for one": ({**DIRECT, "logprobs": True}, {**DIRECT, "logprobs": 1}),
    "text for a number": ({**DIRECT, "seed": 1}, {**DIRECT, "seed": "1"}),
    "a list for its one entry": ({**DIRECT, "stop": "x"}, {**DIRECT, "stop": ["x"]}),
    "order of a list": ({**DIRECT, "stop": ["x", "y"]}, {**DIRECT, "stop": ["y", "x"]}),
    "inside tools": (
        {**DIRECT, "tools": [TOOL]},
        {**DIRECT, "tools": [{**TOOL, "function": {**TOOL["function"], "name": "find"}}]},
    ),
    "null inside a field": ({**DIRECT, "vllm_xargs": {"a": 1}}, {**DIRECT, "vllm_xargs": {"a": 1, "b": None}}),
    "project": (DIRECT, {**DIRECT, "x_project": "q"}),
    "project with a space": (DIRECT, {**DIRECT, "x_project": "p "}),
    "route": (DIRECT, {**DIRECT, "x_route": "rag"}),
    "route workflow": (DIRECT, {**DIRECT, "x_route": "workflow"}),
    "model": (DIRECT, {**DIRECT, "model": "m2"}),
    "adapter": (DIRECT, {**DIRECT, "x_adapter": "poet"}),
    "another adapter": ({**DIRECT, "x_adapter": "bard"}, {**DIRECT, "x_adapter": "poet"}),
    "system prompt": (DIRECT, with_earlier({**SYSTEM, "content": "Be long."})),
    "system prompt composed otherwise": (
        with_earlier({**SYSTEM, "content": "caf\u00e9"}),
        with_earlier({**SYSTEM, "content": "cafe\u0301"}),
    ),
    "no system prompt": (DIRECT, with_earlier()),
    "developer for system": (DIRECT, with_earlier({**SYSTEM, "role": "developer"})),
    "name in an earlier message": (DIRECT, with_earlier({**SYSTEM, "name": "boss"})),
    "an earlier turn": (DIRECT, with_earlier(SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"})),
    "system prompt after the question": (DIRECT, {**DIRECT, "messages": DIRECT["messages"][::-1]}),
    "name": (DIRECT, with_last(DIRECT, name="bob")),
    "extra field of the last message": (DIRECT, with_last(DIRECT, weight=1)),
    "a field called like ours": (DIRECT, with_last(DIRECT, frame=[], parts=[])),
    "role": (DIRECT, with_last(DIRECT, role="assistant")),
    "parts for plain text": (DIRECT, with_last(DIRECT, content=[spoken(QUESTION)])),
    "more parts": (with_last(DIRECT, content=[spoken("a\nb")]), with_last(DIRECT, content=[spoken("a"), spoken("b")])),
    "extra field of a part": (
        with_last(DIRECT, content=[spoken(QUESTION)]),
        with_last(DIRECT, content=[{**spoken(QUESTION), "weight": 1}]),
    ),
    "an image": (
        with_last(DIRECT, content=[spoken("x"), {"type": "image_url", "image_url": {"url": "https://a"}}]),
        with_last(DIRECT, content=[spoken("x"), {"type": "image_url", "image_url": {"url": "https://b"}}]),
    ),
    "text that is none": (with_last(DIRECT, content=[{"type": "text", "text": 5}]), with_last(DIRECT, content=[spoken("5")])),
    "rag top_k": (RAG, {**RAG, "x_rag": {"top_k": 4}}),
    "debate tasks": (DEBATE, debate(tasks=[*TASKS, {"task": "C"}])),
    **{
        f"debate task {name}": (DEBATE, debate(tasks=[{**TASKS[0], **change}, TASKS[1]]))
        for name, change in TASK_CHANGES.items()
    },
    **{f"debate {name}": (DEBATE, debate(**{name: value})) for name, value in DEBATE_CHANGES.items()},
}  # fmt: skip
DELIVERY_FIELDS: dict[str, Any] = {
    "stream": True, "stream_options": {"include_usage": True}, "user": "u1", "metadata": {"a": "b"}, "store": True,
    "priority": 3, "request_id": "r1", "safety_identifier": "u1", "prompt_cache_key": "k",
    "prompt_cache_retention": "24h", "service_tier": "flex", "x_timeout_s": 5, "x_project": "p", "x_route": "direct",
    "top_p": None, "tools": None, "stop": None, "x_adapter": None,
}  # fmt: skip
SAME_QUESTION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: (DIRECT, {**DIRECT, name: value}) for name, value in DELIVERY_FIELDS.items()},
    **{
        f"x_cache {value}": (DIRECT, {**DIRECT, "x_cache": value})
        for value in ({"mode": "refresh"}, {"mode": "only"}, {"mode": "bypass"}, {"threshold": 0}, {"ttl_s": 5})
    },
    "adapter in the model's id": ({**DIRECT, "x_adapter": "poet"}, {**DIRECT, "model": "m:poet"}),
    "order of keys": (
        {**DIRECT, "tools": [TOOL]},
        {**dict(reversed(DIRECT.items())), "tools": [dict(reversed(TOOL.items()))]},
    ),
    "rag sources": (RAG, {**RAG, "x_rag": {"top_k": 3, "sources": True}}),
    "rag default": ({**RAG, "x_rag": {"top_k": SETTINGS.rag_top_k}}, {**DIRECT, "x_route": "rag"}),
    "debate drafts": (DEBATE, debate(drafts=False)),
    "debate provisional": (DEBATE, {**DEBATE, "x_cache": {"mode": "provisional"}}),
    "debate default spelt out": (DEBATE, {**DEBATE, "x_debate": {"tasks": TASKS, "rounds": 1}}),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), OTHER_QUESTIONS.values(), ids=OTHER_QUESTIONS)
def test_what_can_change_the_answer_changes_scope_and_question(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert ids(one) & ids(other) == set()


@pytest.mark.parametrize(("one", "other"), SAME_QUESTION.values(), ids=SAME_QUESTION)
def test_how_an_answer_is_delivered_does_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert ids(one) == ids(other)


def ids(body: dict[str, Any]) -> set[str]:
    """Scope and req_id."""
    question = asked(body)
    assert question.scope != question.req_id
    return {question.scope, question.req_id}


@pytest.mark.parametrize("text", ["what is the capital of France?", QUESTION + " ", "cafe\u0301", "caf\u00e9", "", "\x00"])
@pytest.mark.parametrize("parts", [False, True], ids=["plain", "parts"])
def test_the_last_user_text_alone_changes_the_question_and_not_the_scope(text: str, parts: bool) -> None:
    one = asked(with_last(DIRECT, content=[spoken(QUESTION)] if parts else QUESTION))
    other = asked(with_last(DIRECT, content=[spoken(text)] if parts else text))
    assert (one.scope, other.last_user_text) == (other.scope, text)
    assert one.req_id != other.req_id


def test_the_corpus_is_in_the_scope() -> None:
    question = asked(RAG)
    other = replace(question, corpus="c2")
    assert (question.scope == other.scope, question.req_id == other.req_id) == (False, False)
    assert question.asked_id == other.asked_id


def test_cache_control_is_not_part_of_the_question() -> None:
    assert asked(DIRECT).req_id == asked(DIRECT, headers={"cache-control": "no-cache", "idempotency-key": "k"}).req_id


def test_what_is_not_plain_user_text_is_matched_whole() -> None:
    for content in ([], [spoken("x"), {"type": "image_url", "image_url": {"url": "https://a"}}], [{"type": "text"}], None):
        assert asked(with_last(DIRECT, content=content)).last_user_text is None


def test_each_field_that_counts_reaches_the_engine_and_no_other() -> None:
    """A field that changes the engine's answer and not the scope would give one caller another's answer."""
    question = asked({**DIRECT, **{k: v for k, v in ANSWER_FIELDS.items() if k != "n"}, "user": "u", "stream": True})
    assert set(question.params) == set(ANSWER_FIELDS) - {"n"}


def test_a_worker_finds_the_same_question() -> None:
    for body in (DIRECT, RAG, DEBATE, with_last(DIRECT, content=[spoken("\u2603")])):
        question = asked(body)
        run = Run(trace_id="t", req_id=question.req_id, key="k", keyed=False, question=question, deadline=1.0)
        back = decode_run(encode_run(run)).question
        assert (back.scope, back.req_id) == (question.scope, question.req_id)


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    for number in (b"1e400", b"NaN", b"-Infinity"):
        with pytest.raises(BadRequest, match="not valid JSON"):
            asked(orjson.dumps(DIRECT).replace(b"0.5", number))


def test_the_hashes_of_this_version() -> None:
    """Fails when what a hash is made of changes: then count SCOPE_VERSION up, and mind that stored answers are lost."""
    question = Question(project="p", route="direct", model="m", adapter=None, messages=[{"role": "user", "content": "x"}])
    assert (question.scope[:16], question.req_id[:16]) == ("1888a0d831570337", "cf78bd7f3b8a8cde")
