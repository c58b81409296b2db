"""Answers survive JSON, whatever is in them."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from serve_app.events import BallotReport, ChoiceEnd, DebateReport, TaskReport, Usage
from serve_app.runs import Answer
from serve_app.store.answers_json import answer_from_json, answer_to_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
COUNT = st.integers(0, 2**40)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)
USAGES = st.builds(Usage, prompt_tokens=COUNT, completion_tokens=COUNT, prompt_tokens_details=st.none() | OBJECTS)
TASKS = st.builds(TaskReport, task=TEXT, model=TEXT, usage=USAGES, finish_reason=st.none() | TEXT)
BALLOTS = st.builds(BallotReport, voter=TEXT, order=st.lists(TEXT, max_size=3).map(tuple), choice=st.none() | TEXT)
DEBATES = st.builds(
    DebateReport,
    winner=st.none() | TEXT,
    strategy=TEXT,
    rounds=COUNT,
    stop_reason=TEXT,
    votes=st.lists(BALLOTS, max_size=3).map(tuple),
    tasks=st.lists(TASKS, max_size=3).map(tuple),
)
ENDS = st.builds(
    ChoiceEnd,
    index=COUNT,
    finish_reason=TEXT,
    stop_reason=st.none() | TEXT | st.integers(0, 10**6),
    token_ids=st.none() | st.lists(COUNT, max_size=3).map(tuple),
)
ANSWERS = st.builds(
    Answer,
    model=TEXT,
    messages=st.lists(OBJECTS, max_size=3).map(tuple),
    ends=st.lists(ENDS, max_size=3).map(tuple),
    usage=USAGES,
    winner=st.none() | TEXT,
    debate=st.none() | DEBATES,
    logprobs=st.lists(st.none() | OBJECTS, max_size=3).map(tuple),
    extra=st.none() | OBJECTS,
)


@given(ANSWERS)
def test_an_answer_survives_json(answer: Answer) -> None:
    back = answer_from_json(orjson.loads(orjson.dumps(answer_to_json(answer))))
    assert back == answer
    assert str(back) == str(answer)  # tells 1 from 1.0, a tuple from a list, and the order of keys
