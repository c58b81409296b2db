"""A debate on the wire: what happened survives events and records, and is rendered for OpenAI clients."""

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from serve_app.answers import finished_event, replay, succeeded
from serve_app.events import (
    BallotReport,
    ChoiceEnd,
    DebateReport,
    EventBody,
    FinishedEvent,
    RecallReport,
    RoleEvent,
    RunEvent,
    TaskReport,
    TokenEvent,
    Usage,
    UsageEvent,
    decode,
    encode,
)
from serve_app.gateway.sse import Reader, Renderer, collect
from serve_app.lifecycle.replays import is_answer
from serve_app.lifecycle.reply import Reply
from serve_app.runs import Answer
from serve_app.store.answers_json import answer_from_json, answer_to_json

TRACE = "a" * 32
USAGE = Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12)
TOLD = DebateReport(
    winner="B",
    strategy="judge",
    rounds=2,
    stop_reason="tie_majority",
    votes=(
        BallotReport(voter="judge", order=("A", "B"), choice="A"),
        BallotReport(voter="judge", order=("B", "A"), choice=None),
    ),
    tasks=(TaskReport(task="A", model="m", usage=USAGE, finish_reason="stop"), TaskReport(task="B", model="m:poet")),
)
MERGED = DebateReport(strategy="synthesize", rounds=1, stop_reason="synthesized")


def answered(told: DebateReport) -> Answer:
    return Answer(
        model="debate",
        messages=({"role": "assistant", "content": "Paris"},),
        ends=(ChoiceEnd(finish_reason="stop"),),
        usage=USAGE,
        winner="m:poet",
        debate=told,
    )


def reply(*bodies: EventBody) -> Reply:
    async def events() -> AsyncIterator[RunEvent]:
        for seq, body in enumerate(bodies):
            yield RunEvent(TRACE, seq, body)

    return Reply(trace_id=TRACE, route="workflow", model="debate", created=1, cache=RecallReport(), events=events())


def chunks(*bodies: EventBody, drafts: bool = True) -> list[dict[str, Any]]:
    renderer = Renderer(reply(), include_usage=True, drafts=drafts)
    frames = [frame for seq, body in enumerate(bodies) for frame in renderer.frames(RunEvent(TRACE, seq, body))]
    texts = [frame.decode().partition("data: ")[2].strip() for frame in frames]
    return [json.loads(text) for text in texts if text != "[DONE]"]


@pytest.mark.parametrize(
    "body",
    [
        TokenEvent(text="x", task="A", round=2, attempt=3),
        TokenEvent(text="x", task="A"),
        finished_event(succeeded(answered(TOLD))),
        finished_event(succeeded(answered(MERGED))),
    ],
)
def test_events_of_a_debate_survive_the_bus(body: EventBody) -> None:
    event = RunEvent(TRACE, 3, body)
    assert decode(encode(event)) == event


def test_what_is_no_event_is_refused_without_telling_what_it_said() -> None:
    raw = b'{"v":1,"seq":1,"trace_id":"t","type":"token","text":["my secret"],"later":"my secret"}'
    with pytest.raises(ValueError, match=r"token\.text: Input should be a valid string; token\.later: Extra") as caught:
        decode(raw)
    assert "secret" not in str(caught.value)


def test_a_first_round_and_attempt_go_without_saying() -> None:
    assert set(orjson.loads(encode(RunEvent(TRACE, 0, TokenEvent(text="x", task="A"))))) == {
        "v", "seq", "trace_id", "type", "text", "task",
    }  # fmt: skip


@pytest.mark.parametrize("told", [TOLD, MERGED])
async def test_a_recorded_debate_is_told_again_byte_for_byte(told: DebateReport) -> None:
    answer = answered(told)
    live = (RoleEvent(), TokenEvent(text="d", task="A"), TokenEvent(text="Paris"), UsageEvent(usage=USAGE))
    ended = decode(encode(RunEvent(TRACE, 9, finished_event(succeeded(answer))))).body
    recorded = answer_from_json(orjson.loads(orjson.dumps(answer_to_json(answer))))
    first = await collect(Reader(reply(*live, ended)))
    again = await collect(Reader(reply(*replay(recorded))))
    assert orjson.dumps(first) == orjson.dumps(again)
    assert chunks(*replay(recorded))[-1] == chunks(*live, ended)[-1]


def test_an_answer_recorded_before_votes_were_told_is_read() -> None:
    value = answer_to_json(answered(TOLD))
    del value["debate"]["votes"]
    assert answer_from_json(value).debate == TOLD.model_copy(update={"votes": ()})


def test_what_clients_are_told_of_a_debate() -> None:
    [chunk] = [c for c in chunks(UsageEvent(usage=USAGE), finished_event(succeeded(answered(TOLD)))) if "x_factory" in c]
    assert chunk["usage"]["completion_tokens"] == 7
    assert chunk["x_factory"]["debate"] == {
        "winner": "B",
        "strategy": "judge",
        "rounds": 2,
        "stop_reason": "tie_majority",
        "votes": [
            {"voter": "judge", "order": ["A", "B"], "choice": "A"},
            {"voter": "judge", "order": ["B", "A"], "choice": None},
        ],
        "tasks": [
            {
                "task": "A",
                "model": "m",
                "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
                "finish_reason": "stop",
            },
            {"task": "B", "model": "m:poet", "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}},
        ],
    }
    assert MERGED.facts()["winner"] is None
    votes = DebateReport(strategy="vote", rounds=1, stop_reason="most_votes", votes=(BallotReport(voter="A"),)).facts()["votes"]
    assert votes == [{"voter": "A", "choice": None}], "a debater's ballot has no order"


def test_drafts_are_reasoning_and_say_whose_and_which() -> None:
    drafts = [
        TokenEvent(text="x", task="A"),
        TokenEvent(text="y", task="B", round=2),
        TokenEvent(text="z", task="B", round=2, attempt=2),
        TokenEvent(text="t", task="A", reasoning=True),
    ]
    told = [({k: v for k, v in c.items() if k.startswith("x_")}, c["choices"][0]["delta"]) for c in chunks(*drafts)]
    assert told == [
        ({"x_task": "A"}, {"reasoning_content": "x"}),
        ({"x_task": "B", "x_round": 2}, {"reasoning_content": "y"}),
        ({"x_task": "B", "x_round": 2, "x_attempt": 2}, {"reasoning_content": "z"}),
        ({"x_task": "A"}, {"reasoning_content": "t"}),
    ]
    assert chunks(*drafts, drafts=False) == []
    assert not any(is_answer(draft) for draft in drafts)


def test_a_merged_answer_streams_as_content() -> None:
    shown = chunks(TokenEvent(text="d", task="A"), TokenEvent(text="Pa"), TokenEvent(text="ris"), drafts=False)
    assert [c["choices"][0]["delta"] for c in shown] == [{"content": "Pa"}, {"content": "ris"}]


def test_the_last_event_of_a_debate_is_its_end() -> None:
    *_, last = replay(answered(TOLD))
    assert isinstance(last, FinishedEvent)
    assert last.debate == TOLD
