"""A discrete event simulation of replicas behind Serve's router. Pure, seeded, no clock but its own.

A replica that works on n requests gives each of them a token every step(n) seconds (processor sharing), and accepts at
most `max_ongoing`. What it does not accept waits at the router, which polls as Ray Serve's does: the first of the
waiting requests look for a place, each on two random replicas, and pause longer and longer in between. A place may
therefore stay empty for a while though requests wait; that is part of what is predicted.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from serve_app.capacity.figures import Gaps, Timing
from serve_app.capacity.replica_model import ReplicaModel

_EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Router:
    """How waiting requests look for a place: Ray Serve 2.60's defaults, RAY_SERVE_ROUTER_RETRY_… in its environment.

    Ray has two pollers a replica, but they fall into step with each other: one predicts what is measured better.
    """

    first_pause_s: float = 0.025
    pause_grows: float = 2.0
    longest_pause_s: float = 0.5
    pollers_each: int = 1

    def pause(self, attempt: int) -> float:
        """Seconds before the next look, after so many pauses."""
        return min(self.first_pause_s * self.pause_grows ** min(attempt, 60), self.longest_pause_s)


@dataclass(frozen=True, slots=True)
class System:
    """What is simulated: so many replicas of one kind. `max_queued` -1: no bound."""

    replica: ReplicaModel
    replicas: int = 1
    max_ongoing: int = 64
    max_queued: int = -1
    router: Router = field(default_factory=Router)

    def ceiling(self, prompt_tokens: float, output_tokens: int) -> float:
        """Requests per second that no load gets beyond."""
        each = max(self.replica.serves(n, prompt_tokens, output_tokens) for n in range(1, self.max_ongoing + 1))
        return self.replicas * each


@dataclass(slots=True)
class _Request:
    arrived: float
    first: float | None = None
    ended: float | None = None


@dataclass(slots=True, eq=False)
class _Replica:
    """`progress` counts the tokens that each decoding answer has got since time began; `due` is when one is complete."""

    index: int
    ongoing: int = 0
    progress: float = 0.0
    since: float = 0.0
    due: list[tuple[float, int]] = field(default_factory=list)
    version: int = 0


@dataclass(slots=True)
class _Poller:
    request: int
    attempt: int = 0


class Simulation:
    """One run over given arrivals. Use `run` once."""

    def __init__(
        self,
        system: System,
        moments: Sequence[float],
        *,
        output_tokens: int,
        prompt_tokens: float,
        seed: int,
        window: tuple[float, float],
    ) -> None:
        self._system = system
        self._tokens = output_tokens
        self._random = Random(seed)  # noqa: S311 - a simulation
        self._window = window
        self._requests = [_Request(moment) for moment in moments]
        self._replicas = [_Replica(index) for index in range(system.replicas)]
        self._steps = [0.0, *(system.replica.step(n) for n in range(1, system.max_ongoing + 1))]
        self._firsts = [0.0, *(system.replica.first(n, prompt_tokens) for n in range(1, system.max_ongoing + 1))]
        self._emitted = [0.0] * (system.max_ongoing + 1)  # tokens in the window, by the number of requests they shared with
        self._pending: deque[int] = deque()
        self._pollers = 0
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0

    def run(self) -> tuple[list[Timing], Gaps]:
        """All requests to their ends; refused ones are not ok."""
        for number, request in enumerate(self._requests):
            self._at(request.arrived, "arrive", number)
        polling: dict[int, _Poller] = {}
        while self._events:
            now, _, kind, subject, version = heapq.heappop(self._events)
            match kind:
                case "arrive":
                    self._arrive(now, subject, polling)
                case "first":
                    self._first(now, subject, version)
                case "done":
                    self._done(now, subject, version)
                case _:
                    self._poll(now, polling.pop(subject), polling)
        return self._timings(), self._gaps()

    def _at(self, when: float, kind: str, subject: int, version: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, subject, version))

    def _arrive(self, now: float, number: int, polling: dict[int, _Poller]) -> None:
        if 0 <= self._system.max_queued <= len(self._pending) + len(polling):
            self._requests[number].ended = now
            return
        self._pending.append(number)
        if self._pollers < self._system.router.pollers_each * self._system.replicas:
            self._pollers += 1
            self._poll(now, _Poller(self._pending.popleft()), polling)

    def _poll(self, now: float, poller: _Poller, polling: dict[int, _Poller]) -> None:
        """Find a place for the poller's request, then for the next ones; pause where there is none."""
        while True:
            # The first miss is followed by another look at once.
            place = self._choose() if poller.attempt else self._choose() or self._choose()
            if place is None:
                polling[poller.request] = _Poller(poller.request, poller.attempt + 1)
                self._at(now + self._system.router.pause(poller.attempt), "poll", poller.request)
                return
            self._admit(now, poller.request, place)
            if not self._pending:
                self._pollers -= 1
                return
            poller = _Poller(self._pending.popleft())

    def _choose(self) -> "_Replica | None":
        seen = self._replicas if len(self._replicas) <= 2 else self._random.sample(self._replicas, 2)
        best = min(seen, key=lambda replica: replica.ongoing)
        return best if best.ongoing < self._system.max_ongoing else None

    def _admit(self, now: float, number: int, replica: _Replica) -> None:
        self._advance(now, replica)
        replica.ongoing += 1
        spread = self._random.choice(self._system.replica.first_spread)
        self._at(now + self._firsts[replica.ongoing] * spread, "first", number, replica.index)
        self._expect(now, replica)

    def _first(self, now: float, number: int, index: int) -> None:
        replica = self._replicas[index]
        self._advance(now, replica)
        self._requests[number].first = now
        heapq.heappush(replica.due, (replica.progress + self._tokens - 1, number))
        self._expect(now, replica)

    def _done(self, now: float, index: int, version: int) -> None:
        replica = self._replicas[index]
        if version != replica.version:
            return  # the pace has changed since; a later event stands for this one
        self._advance(now, replica)
        while replica.due and replica.due[0][0] <= replica.progress + _EPSILON:
            self._requests[heapq.heappop(replica.due)[1]].ended = now
            replica.ongoing -= 1
        self._expect(now, replica)

    def _advance(self, now: float, replica: _Replica) -> None:
        if replica.due:
            step = max(self._steps[replica.ongoing], _EPSILON)
            replica.progress += (now - replica.since) / step
            counted = min(now, self._window[1]) - max(replica.since, self._window[0])
            if counted > 0:
                self._emitted[replica.ongoing] += len(replica.due) * counted / step
        replica.since = now

    def _expect(self, now: float, replica: _Replica) -> None:
        """Set down when the next answer of the replica is complete, should nothing else happen before."""
        replica.version += 1
        if replica.due:
            left = max(0.0, replica.due[0][0] - replica.progress)
            self._at(now + left * self._steps[replica.ongoing], "done", replica.index, replica.version)

    def _timings(self) -> list[Timing]:
        return [
            Timing(r.arrived, r.first, r.arrived if r.ended is None else r.ended, self._tokens, r.first is not None)
            for r in self._requests
        ]

    def _gaps(self) -> Gaps:
        offsets = np.array(self._system.replica.step_offsets)
        seconds = np.maximum(0.0, np.add.outer(self._steps, offsets))
        return Gaps(seconds.ravel(), np.repeat(self._emitted, len(offsets)) / len(offsets))
