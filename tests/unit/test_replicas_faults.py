"""Faults of the simulated replica hit by number, and do what they say."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serve_app.configured import FaultConfig, SimulatedConfig
from serve_app.errors import UpstreamFailed
from serve_app.events import EventBody, FinishedEvent, TokenEvent, UsageEvent
from serve_app.replicas.chunks import ChunkReader
from serve_app.replicas.faults import FaultPlan, InjectedReset, spoilt


def hits(plan: FaultPlan, requests: int) -> list[str | None]:
    return [fault.kind if fault else None for fault in (plan.next() for _ in range(requests))]


def test_which_requests_are_hit() -> None:
    assert hits(FaultPlan([]), 2) == [None, None]
    assert hits(FaultPlan([FaultConfig(kind="reset", times=2)]), 4) == ["reset", "reset", None, None]
    assert hits(FaultPlan([FaultConfig(kind="reset", every=2)]), 4) == ["reset", None, "reset", None]
    both = [FaultConfig(kind="cut", every=3, times=1), FaultConfig(kind="stall", every=2)]
    assert hits(FaultPlan(both), 5) == ["cut", None, "stall", None, "stall"]


def test_faults_come_from_the_configuration_too() -> None:
    assert SimulatedConfig(**{"faults": [{"kind": "cut", "after": 3}]}).faults == [FaultConfig(kind="cut", after=3)]
    with pytest.raises(ValueError, match="faults"):
        SimulatedConfig(**{"faults": [{"kind": "catch fire"}]})


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}


async def good_answer() -> AsyncGenerator[dict[str, Any], None]:
    yield {"status": 200}
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    for number in range(4):
        end = "stop" if number == 3 else None
        yield {"choices": [{"index": 0, "delta": {"content": f"w{number} "}, "finish_reason": end}], "usage": usage(number + 1)}
    yield {"choices": [], "usage": usage(4)}


@contextmanager
def held() -> Iterator[None]:
    yield


async def read(**fault: Any) -> list[EventBody]:
    """The events of the answer with a fault, as ServeReplicas would read them."""
    reader, events = ChunkReader(), list[EventBody]()
    async for item in spoilt(good_answer(), FaultConfig(**fault), {}, held):
        if item != {"status": 200}:
            events += reader.feed(item)
    return [*events, reader.finish()]


@pytest.mark.parametrize("kind", ["cut", "no_prefill"])
async def test_a_cut_comes_after_its_token(kind: str) -> None:
    items = spoilt(good_answer(), FaultConfig(**{"kind": kind, "after": 2}), {}, held)
    assert [bool(await anext(items)) for _ in range(4)] == [True] * 4  # status, role, two tokens
    with pytest.raises(InjectedReset):
        await anext(items)


@pytest.mark.parametrize("fault", [{"kind": "malformed", "after": 1}, {"kind": "no_finish"}])
async def test_a_broken_answer_is_an_error(fault: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed):
        await read(**fault)


async def test_usage_that_cannot_be_read_does_not_spoil_the_answer() -> None:
    events = await read(kind="bad_usage")
    assert [e.text for e in events if isinstance(e, TokenEvent)] == ["w0 ", "w1 ", "w2 ", "w3 "]
    assert sum(e.usage.total_tokens for e in events if isinstance(e, UsageEvent)) == 0
    assert isinstance(events[-1], FinishedEvent)
    assert events[-1].reason == "stop"


async def test_a_filtered_end_passes_through() -> None:
    last = (await read(kind="filtered"))[-1]
    assert isinstance(last, FinishedEvent)
    assert (last.reason, last.choices[0].finish_reason) == ("content_filter", "content_filter")


async def test_a_prefill_is_refused() -> None:
    body = {"messages": [{"role": "user"}, {"role": "assistant"}]}
    items = [item async for item in spoilt(good_answer(), FaultConfig(kind="no_prefill", after=2), body, held)]
    assert [item["status"] for item in items if isinstance(item, dict)] == [400]
