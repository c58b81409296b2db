"""Chunks of a chat stream become events, and a cut stream never looks finished."""

from typing import Any

import orjson
import pytest

from serve_app.errors import AifactoryError, BadRequest, NotFound, Overloaded, UpstreamFailed
from serve_app.events import ChoiceEnd, EventBody, FinishedEvent, RoleEvent, TokenEvent, ToolCallEvent, Usage, UsageEvent
from serve_app.replicas.chunks import ChunkReader, error_from_replica
from serve_app.replicas.whole import chunks_of


def chunk(delta: dict[str, Any], index: int = 0, usage: dict[str, int] | None = None, **choice: Any) -> str:
    made = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return orjson.dumps({**made, "choices": [{"index": index, "delta": delta, **choice}], "usage": usage}).decode()


def read(*chunks: object) -> list[EventBody]:
    reader = ChunkReader()
    events = [event for raw in chunks for event in reader.feed(raw)]
    return [*events, reader.finish()]


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def test_a_plain_answer() -> None:
    assert read(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hi"}),
        chunk({"content": ""}, finish_reason="stop", stop_reason="END"),
        {"choices": [], "usage": usage(3, 2), "system_fingerprint": "fp", "service_tier": None},
    ) == [
        RoleEvent(),
        TokenEvent(text="Hi"),
        UsageEvent(usage=Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)),
        FinishedEvent(
            reason="stop",
            choices=(ChoiceEnd(finish_reason="stop", stop_reason="END"),),
            extra={"system_fingerprint": "fp"},
        ),
    ]


def test_logprobs_stay_even_where_a_token_has_no_text_yet() -> None:
    logprobs = {"content": [{"token": "x", "logprob": -0.5}]}
    events = read(chunk({"content": ""}, logprobs=logprobs), chunk({"content": "é"}, finish_reason="length"))
    assert events[0] == TokenEvent(text="", logprobs=logprobs)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_comes_before_the_answer(field: str) -> None:
    events = read(chunk({field: "hm", "content": "so"}, finish_reason="stop"))
    assert events[:2] == [TokenEvent(text="hm", reasoning=True), TokenEvent(text="so")]


def test_tool_calls_keep_number_id_and_name() -> None:
    first = {"index": 1, "id": "c1", "function": {"name": "search", "arguments": ""}}
    events = read(
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}, finish_reason="tool_calls"),
    )
    assert events[:2] == [ToolCallEvent(name="search", call=1, call_id="c1"), ToolCallEvent(arguments="{}", call=1)]


def test_a_tool_call_without_an_id_gets_one_of_its_own_that_stays() -> None:
    nameless = [
        chunk({"tool_calls": [{"index": number, "function": {"name": "f", "arguments": "{}"}}]}, choice)
        for choice in (0, 1)
        for number in (0, 1)
    ]
    late = chunk({"tool_calls": [{"index": 0, "id": "late", "function": {"arguments": ""}}]}, 0)

    def ids(request_id: str) -> list[str | None]:
        reader = ChunkReader(2, request_id)
        return [e.call_id for raw in (*nameless, late) for e in reader.feed(raw) if isinstance(e, ToolCallEvent)]

    *made, after = ids("a" * 32)
    assert all(one is not None and one.startswith("call_") and len(one) <= 40 for one in made)
    assert len(set(made)) == 4, "each call of each choice"
    assert after is None, "clients join the ids of all pieces"
    assert ids("a" * 32)[:4] == made
    assert not set(ids("b" * 32)) & set(made)


def test_token_ids_of_a_choice_are_told_with_its_end() -> None:
    reader = ChunkReader(2)
    for raw in (
        chunk({"content": "a"}, 0, token_ids=[1]),
        chunk({"content": "b"}, 1, token_ids=[2], finish_reason="stop"),
        chunk({}, 0, token_ids=[3, 4], finish_reason="stop"),
    ):
        list(reader.feed(raw))
    assert [end.token_ids for end in reader.finish().choices] == [(1, 3, 4), (2,)]


def test_usage_counts_all_choices_and_is_not_repeated() -> None:
    events = read(
        chunk({"content": "a"}, 0, usage(5, 1)),
        chunk({"content": "b"}, 1, usage(5, 1)),
        chunk({"content": "c"}, 1, usage(5, 2), finish_reason="stop"),
        chunk({"content": ""}, 0, usage(5, 1), finish_reason="stop"),
        {"choices": [], "usage": usage(5, 3)},
    )
    assert [e.usage.completion_tokens for e in events if isinstance(e, UsageEvent)] == [1, 2, 3]
    assert isinstance(events[-1], FinishedEvent)
    assert [end.index for end in events[-1].choices] == [0, 1]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk({"content": "cut"})],
        [chunk({"content": "a"}, 0, finish_reason="stop"), chunk({"content": "b"}, 1)],
        [chunk({"content": ""}, finish_reason="abort")],
    ],
)
def test_a_cut_stream_is_an_error(chunks: list[str]) -> None:
    with pytest.raises(UpstreamFailed):
        read(*chunks)


def test_a_choice_that_never_began_is_missed() -> None:
    reader = ChunkReader(2)
    assert list(reader.feed(chunk({"content": "a"}, 0, finish_reason="stop")))
    assert not reader.complete
    with pytest.raises(UpstreamFailed, match="1 of 2 choices"):
        reader.finish()


@pytest.mark.parametrize("broken", ["oops", 7, ["x"], {"prompt_tokens": "many"}, {"completion_tokens": {"a": 1}}])
def test_usage_that_cannot_be_read_leaves_what_is_known(broken: Any) -> None:
    events = read(chunk({"content": "a"}, usage=usage(5, 1)), chunk({"content": "b"}, usage=broken, finish_reason="stop"))
    assert [e.usage.total_tokens for e in events if isinstance(e, UsageEvent)] == [6]
    assert isinstance(events[-1], FinishedEvent)


def test_the_code_of_a_refusal_stays() -> None:
    refused = error_from_replica({"message": "too long", "code": "context_length_exceeded"}, status=400)
    assert (type(refused), refused.code) == (BadRequest, "context_length_exceeded")


@pytest.mark.parametrize(
    "raw", ["not json", "[]", 7, None, {}, {"choices": [{}]}, {"choices": [{"index": 0, "delta": {"content": 5}}]}]
)
def test_nonsense_is_an_error(raw: object) -> None:
    with pytest.raises(UpstreamFailed):
        read(raw)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (404, NotFound), (422, BadRequest), (429, Overloaded), (503, Overloaded), (500, UpstreamFailed)],
)
def test_an_error_chunk_raises_the_error_of_its_status(status: int, kind: type[AifactoryError]) -> None:
    with pytest.raises(kind, match="bad top_p") as caught:
        read({"error": {"message": "bad top_p", "type": "BadRequestError", "param": "top_p", "code": status}})
    if kind is BadRequest:
        assert caught.value.param == "top_p"


def test_an_error_without_a_body_is_still_an_error() -> None:
    assert isinstance(error_from_replica(None, status=None), UpstreamFailed)


def test_a_whole_response_reads_like_a_stream() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    response = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"},
            {"index": 1, "message": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"},
        ],
        "usage": usage(4, 6),
        "prompt_logprobs": [None],
    }
    events = read(*chunks_of(response))
    assert events[:2] == [RoleEvent(), TokenEvent(text="one")]
    assert events[2:4] == [RoleEvent(index=1), ToolCallEvent(name="f", arguments="{}", call_id="c", index=1)]
    assert events[4] == UsageEvent(usage=Usage(prompt_tokens=4, completion_tokens=6, total_tokens=10))
    assert isinstance(events[5], FinishedEvent)
    assert events[5].extra == {"prompt_logprobs": [None]}
