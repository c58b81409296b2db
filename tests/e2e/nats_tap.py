"""Listens on evt.chat.> as `nats sub` would, and keeps what it heard by run."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.msg import Msg

from tests.e2e.stack_under_test import until


class Tap:
    """Events by trace_id, in the order they came."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)

    async def whole_run(self, trace_id: str, timeout_s: float = 60) -> list[dict[str, Any]]:
        """The events of a run, once its `finished` was heard. Checks that seq has no holes and the end comes once."""
        await until(lambda: any(e["type"] == "finished" for e in self.events[trace_id]), timeout_s, "finished")
        events = self.events[trace_id]
        assert [e["seq"] for e in events] == list(range(len(events)))
        assert [e["type"] for e in events].count("finished") == 1
        assert events[-1]["type"] == "finished"
        assert {e["trace_id"] for e in events} == {trace_id}
        assert {e["v"] for e in events} == {1}
        return events


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[Tap]:
    """A tap on the server at `url`."""
    client = await nats.connect(url)
    tap = Tap()

    async def hear(message: Msg) -> None:
        event = json.loads(message.data)
        tap.events[message.subject.removeprefix("evt.chat.")].append(event)

    await client.subscribe("evt.chat.>", cb=hear)
    await client.flush()
    try:
        yield tap
    finally:
        await client.close()
