"""Where spans belong, what a caller's traceparent may be, and what becomes of spans that cannot be sent."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from serve_app.answers import failed
from serve_app.errors import BadRequest, UpstreamFailed
from serve_app.events import Usage
from serve_app.runs import Question, Run, new_trace_id
from serve_app.settings import Settings
from serve_app.spans import Place, Span, drop_spans, ended, new_span_id, read_traceparent, send_spans_to, timed, traced
from serve_app.tracing import SpanSender, TracingUnavailable, check_tracing, start_tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
THEIRS = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    taken: list[Span] = []
    take = taken.append
    send_spans_to(take, ratio=1.0)
    yield taken
    drop_spans(take)


def a_run(traceparent: str | None = None) -> Run:
    question = Question("p", "direct", "m", None, [{"role": "user", "content": "a secret"}])
    return Run(new_trace_id(), question.req_id, "k", False, question, time.time() + 60, traceparent=traceparent)


@pytest.mark.parametrize("flags", ["00", "01", "03", "ff"])
def test_of_a_good_traceparent_only_the_flag_sampled_is_kept(flags: str) -> None:
    assert read_traceparent([f"00-{TRACE}-{SPAN}-{flags}"]) == f"00-{TRACE}-{SPAN}-0{int(flags, 16) & 1}"


def test_of_a_later_version_the_known_part_is_read() -> None:
    assert read_traceparent([f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"]) == THEIRS


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        [THEIRS, THEIRS],
        [THEIRS + "-more"],  # version 00 ends with its flags
        [f"cc-{TRACE}-{SPAN}-01" + "-x" * 200],
        [f"cc-{TRACE}-{SPAN}-01."],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [THEIRS.upper()],
        [f"00-{TRACE}-{SPAN}"],
        [f"00-{TRACE[:-1]}-{SPAN}-01"],
        [f"00-{TRACE[:-1]}g-{SPAN}-01"],
        [f" {THEIRS}"],
        [THEIRS + "\n"],
        [f"00-{TRACE}-{SPAN}-0\u0661"],
    ],
)
def test_a_malformed_traceparent_is_none(headers: list[str]) -> None:
    assert read_traceparent(headers) is None


def test_ids_follow_from_the_trace_id_alone() -> None:
    own, theirs = Place.of(TRACE, None), Place.of(new_trace_id(), THEIRS)
    assert (own.trace_id, own.caller) == (TRACE, None)
    assert (theirs.trace_id, theirs.caller) == (TRACE, SPAN)
    assert Place.of(TRACE, THEIRS).exchange == own.exchange == TRACE[16:]
    assert own.execution == Place.of(TRACE, None).execution
    many = [Place.of(new_trace_id(), None) for _ in range(1000)]
    ids = [span_id for place in many for span_id in (place.exchange, place.execution, new_span_id())]
    assert len(set(ids)) == 3000
    assert all(len(span_id) == 16 and int(span_id, 16) for span_id in ids)


def test_without_a_collector_there_are_no_spans() -> None:
    assert traced(TRACE, THEIRS) is None
    with timed(a_run(), "work") as span:
        span.note({"a": 1})
    assert not isinstance(span, Span)


def test_the_ratio_decides_alike_everywhere_and_the_callers_decision_comes_first(spans: list[Span]) -> None:
    runs = [new_trace_id() for _ in range(4000)]
    send_spans_to(spans.append, ratio=0.25)
    chosen = [run for run in runs if traced(run, None)]
    assert chosen == [run for run in runs if traced(run, None)]
    assert 800 < len(chosen) < 1200
    send_spans_to(spans.append, ratio=0)
    assert not any(traced(run, None) for run in runs)
    assert traced(runs[0], THEIRS)
    send_spans_to(spans.append, ratio=1)
    assert all(traced(run, None) for run in runs)
    assert traced(runs[0], THEIRS[:-1] + "0") is None, "the caller does not record its trace"


def test_an_error_is_told_by_its_code_only(spans: list[Span]) -> None:
    run = a_run()
    with pytest.raises(BadRequest), timed(run, "work"):
        raise BadRequest("the prompt 'a secret' is too long", code="context_length_exceeded")
    with pytest.raises(KeyError), timed(run, "work"):
        raise KeyError("a secret")
    ended(run, failed(UpstreamFailed("a secret"), Usage()))
    assert [(span.failed, span.error) for span in spans] == [
        (True, "context_length_exceeded"),
        (True, "KeyError"),
        (True, "upstream_failed"),
    ]
    assert "a secret" not in str(spans)


def test_a_debate_that_began_on_dagsters_page_is_the_first_span_of_its_trace(spans: list[Span]) -> None:
    ended(replace(a_run(), dagster_run_id="of the page"), failed(UpstreamFailed("x"), Usage()))
    ended(a_run(), failed(UpstreamFailed("x"), Usage()))
    assert spans[0].parent is None
    assert spans[1].parent == spans[1].place.exchange


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://", "4318"])
def test_a_wrong_address_is_refused_at_the_start(endpoint: str) -> None:
    with pytest.raises(TracingUnavailable, match="it looks like http://collector:4318"):
        check_tracing(Settings(config="simulated", otlp_endpoint=endpoint))


def test_a_missing_extra_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(TracingUnavailable, match=r"pip install -e '\.\[tracing\]'"):
        start_tracing(Settings(config="simulated", otlp_endpoint="http://127.0.0.1:4318"), component="gateway")
    assert start_tracing(Settings(config="simulated"), component="gateway") is None


def test_what_waits_is_bounded() -> None:
    sender = SpanSender("http://127.0.0.1:9", component="test")  # nobody listens there
    place = Place.of(TRACE, None)
    try:
        for _ in range(20_000):
            sender.take(Span("x", "internal", place, new_span_id(), None, time.time()))
        assert len(sender._waiting) <= 8192
    finally:
        begun = time.monotonic()
        sender.close()
    assert time.monotonic() - begun < 15, "closing waits for a collector that is away"
