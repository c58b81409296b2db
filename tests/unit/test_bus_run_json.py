"""A run survives the queue unchanged."""

import math
import time

import orjson
import pytest

from serve_app.bus.run_json import decode_run, encode_run
from serve_app.runs import CachePolicy, Question, Run

FULL = Run(
    trace_id="a" * 32,
    req_id="b" * 64,
    key="my key ü",
    keyed=True,
    question=Question(
        project="p",
        route="workflow",
        model="m",
        adapter="legal",
        messages=[{"role": "user", "content": [{"type": "text", "text": "häh?"}]}],
        params={"temperature": 0.0, "tools": [{"type": "function"}], "stop": None},
        debate={"tasks": [{"task": "A"}], "rounds": 2},
    ),
    deadline=time.time() + 0.123456,
    cache=CachePolicy("refresh", 0.0, 7),
    attempt=3,
    embedding=[0.5, -0.25, 0.1],
    dagster_run_id="0f8fad5b-d9cb-469f-a165-70867728950e",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)


def test_round_trip_of_every_field() -> None:
    back = decode_run(encode_run(FULL))
    assert back.embedding is not None
    assert FULL.embedding is not None
    assert all(math.isclose(a, b, rel_tol=1e-7) for a, b in zip(back.embedding, FULL.embedding, strict=True))
    assert encode_run(back) == encode_run(FULL)
    for name in ("trace_id", "req_id", "key", "keyed", "question", "deadline", "cache", "attempt", "started", "traceparent"):
        assert getattr(back, name) == getattr(FULL, name)
    assert back.dagster_run_id == FULL.dagster_run_id
    assert back.question.req_id == FULL.question.req_id


def test_without_an_embedding() -> None:
    run = Run("t", "r", "k", False, Question("p", "workflow", "m", None, []), 1.5)
    assert decode_run(encode_run(run)) == run


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null", b'{"v": 2}', b"{not json", b'{"v": 1, "embedding": null}'])
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="run"):
        decode_run(raw)


def test_a_wrong_embedding_or_an_unknown_field_is_refused() -> None:
    fields = orjson.loads(encode_run(FULL))
    with pytest.raises(ValueError, match=r"."):
        decode_run(orjson.dumps({**fields, "embedding": "abc"}))
    with pytest.raises(ValueError, match="not a run"):
        decode_run(orjson.dumps({**fields, "new": 1}))
