"""What a simulated replica says: the same for the same request, within the request's limits."""

import json
from typing import Any, cast

import pytest

from serve_app.configured import SimulatedConfig
from serve_app.errors import BadRequest
from serve_app.replicas.simulated_request import read_chat, read_completion
from serve_app.replicas.simulated_text import Script, pieces_of, write

WRONG_PROMPTS: tuple[Any, ...] = (None, "", [], 5, [""], [{}])
CONFIG = SimulatedConfig(seed=1, default_tokens=12)


def say(config: SimulatedConfig = CONFIG, choice: int = 0, **body: Any) -> Script:
    return write(read_chat({"messages": [{"role": "user", "content": "hello"}], **body}), config, choice)


def text(script: Script) -> str:
    return "".join(script.pieces)


def test_the_same_request_gets_the_same_answer_and_others_another() -> None:
    assert say() == say()
    others = [say(seed=2), say(choice=1), say(SimulatedConfig(seed=9)), say(messages=[{"role": "user", "content": "other"}])]
    assert all(text(other) != text(say()) for other in others)


def test_lengths_and_their_reasons() -> None:
    assert (len(say().pieces), say().finish_reason) == (12, "stop")
    assert (len(say(max_tokens=5).pieces), say(max_tokens=5).finish_reason) == (5, "length")
    assert (len(say(max_completion_tokens=40).pieces), say(max_completion_tokens=40).finish_reason) == (40, "length")


def test_a_script_is_spoken_word_for_word() -> None:
    config = SimulatedConfig(script="One two  three incomprehensibilities.\n")
    assert text(say(config)) == config.script
    assert say(config, max_tokens=2) == Script(("One", " two"), "length")


def test_text_stops_before_a_stop_string() -> None:
    config = SimulatedConfig(script="One two three four")
    assert say(config, stop=["ree", "our"]) == Script(("One", " two", " th"), "stop", "ree")
    assert say(config, stop="One") == Script((), "stop", "One")


def test_pieces_join_to_the_text() -> None:
    for sample in ("", "a", "  two  spaces ", "longwordlongwordlongword", "línea\n\nnueva"):
        assert "".join(pieces_of(sample)) == sample


def test_a_choice_is_one_of_the_choices() -> None:
    answers = {text(say(structured_outputs={"choice": ["A", "B"]}, seed=n)) for n in range(20)}
    assert answers == {"A", "B"}


def test_json_follows_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "winner": {"enum": ["A", "B"]},
            "score": {"type": "integer", "minimum": 3},
            "why": {"type": ["string", "null"]},
            "tags": {"type": "array", "items": {"const": "x"}},
        },
    }
    answer = json.loads(text(say(response_format={"type": "json_schema", "json_schema": {"name": "v", "schema": schema}})))
    assert answer["winner"] in ("A", "B")
    assert answer["score"] == 3
    assert answer["tags"] == ["x"]
    assert isinstance(answer["why"], str)


def test_a_forced_tool_is_called() -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    assert say(tools=tools, tool_choice="required") == Script(("{}",), "tool_calls")
    assert say(tools=tools).finish_reason == "stop"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"content": "no role"}]),
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("n", 0),
        ("temperature", -0.1),
        ("top_p", 1.5),
        ("stop", [""]),
        ("seed", "x"),
        ("structured_outputs", {"regex": "a+"}),
        ("response_format", {"type": "json_schema"}),
        ("tool_choice", {"function": {"name": "unknown"}}),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        say(**{field: cast(Any, value)})
    assert caught.value.param == field


def test_prompts_of_a_completion() -> None:
    assert [ask.prompt for ask in read_completion({"prompt": ["a", "b"]})] == ["a", "b"]
    assert len(read_completion({"prompt": [1, 2, 3]})) == 1
    assert len(read_completion({"prompt": [[1, 2], [3]]})) == 2
    for wrong in WRONG_PROMPTS:
        with pytest.raises(BadRequest):
            read_completion({"prompt": wrong})
