"""What must hold after any chaos, checked from both sides: what clients saw, and what the servers kept."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from bench.chaos.exchange import Exchange
from bench.chaos.kills import Killed
from bench.chaos.load import expected_texts
from bench.chaos.records import BusState, Row
from bench.chaos.servers import Outage

_HEALING_S = 8.0  # until a client of a server that is back has noticed
# What a client may be told while parts are away. Anything else is a fault of its own.
_HONEST_STATUS = frozenset({429, 500, 502, 503, 504})


@dataclass
class Finding:
    """One invariant: held when `broken` is empty. Each broken case begins with a trace_id or another name."""

    name: str
    checked: int
    broken: list[str] = field(default_factory=list)


@dataclass
class Evidence:
    """Everything the checks need."""

    exchanges: Sequence[Exchange]
    rows: Sequence[Row]
    bus: BusState
    heard: dict[str, list[int]]  # seq of each `finished` that the tap heard, by run
    nats_outages: Sequence[Outage]
    postgres_outages: Sequence[Outage]
    killed: Sequence[Killed] = ()

    def __post_init__(self) -> None:
        self.by_trace = {row.trace_id: row for row in sorted(self.rows, key=lambda row: not row.past)}
        self.keys = {row.key: row for row in self.rows if not row.past}


def check(evidence: Evidence) -> list[Finding]:
    """Every invariant on requests, rows and events."""
    return [
        rows_have_ended(evidence),
        traces_are_one(evidence),
        accepted_is_recorded(evidence),
        ends_are_honest(evidence),
        text_is_whole(evidence),
        statuses_are_expected(evidence),
        one_result_per_key(evidence),
        keys_have_their_answer(evidence),
        finished_once(evidence),
    ]


def rows_have_ended(evidence: Evidence) -> Finding:
    """No row is `running`, with or without a lease: nobody asks any more and everything had time to end."""
    broken = [
        f"{row.trace_id} {row.route} running, lease over: {row.overdue}" for row in evidence.rows if row.status == "running"
    ]
    return Finding("no run is still running", len(evidence.rows), broken)


def traces_are_one(evidence: Evidence) -> Finding:
    """A run has one terminal state, also where the log and its history both tell of it."""
    states: dict[str, set[str]] = defaultdict(set)
    for row in evidence.rows:
        states[row.trace_id].add(row.status)
    broken = [f"{trace_id} is {' and '.join(sorted(several))}" for trace_id, several in states.items() if len(several) > 1]
    return Finding("one terminal state per run", len(states), broken)


def accepted_is_recorded(evidence: Evidence) -> Finding:
    """An accepted request has its row. Without one: cache hits, and unkeyed direct answers while Postgres was away."""
    broken, checked = [], 0
    for made in evidence.exchanges:
        if not made.accepted or made.cache in ("exact", "semantic") or made.trace_id in evidence.by_trace:
            checked += made.accepted
            continue
        checked += 1
        excused = _away(evidence.postgres_outages, made) and made.key is None and not made.debate
        if made.key is not None or made.debate:
            # The run's owner died, and the key went to a later run.
            excused = made.end != "done" and made.key in evidence.keys
        if not excused and _copies(evidence, made) < 2:
            broken.append(f"{made.trace_id} {made.kind} {made.end}: no row")
    return Finding("accepted requests are recorded", checked, broken)


def ends_are_honest(evidence: Evidence) -> Finding:
    """Every answer ended with all of it, with an error, or visibly cut."""
    broken = [
        f"{made.trace_id} {made.kind} {made.end} after {made.ended - made.began:.1f} s: {made.trouble or made.error}"
        for made in evidence.exchanges
        if made.end in ("silent", "hung") or made.trouble
    ]
    return Finding("no end is missing or faked", len(evidence.exchanges), broken)


def text_is_whole(evidence: Evidence) -> Finding:
    """A whole answer is what the engine says to this request, and what the log has under its trace_id."""
    broken, checked = [], 0
    for made in evidence.exchanges:
        if made.end != "done":
            continue
        checked += 1
        if made.cache != "semantic" and made.text not in expected_texts(made.body):
            broken.append(f"{made.trace_id} {made.kind}: the text is not the engine's: {made.text[:60]!r}")
        row = evidence.by_trace.get(made.trace_id or "")
        if row is None:
            continue
        if row.status == "succeeded" and row.text != made.text:
            broken.append(f"{made.trace_id} {made.kind}: the log has another text")
        unrecorded = made.key is None and not made.debate and _away(evidence.postgres_outages, made)
        if row.status != "succeeded" and not unrecorded:
            broken.append(f"{made.trace_id} {made.kind}: whole for the client, {row.status} in the log ({row.error})")
    return Finding("a whole answer is the recorded one", checked, broken)


def statuses_are_expected(evidence: Evidence) -> Finding:
    """Faults show as retryable errors, never as a caller's mistake."""
    broken = [
        f"{made.trace_id} {made.kind} {made.status}: {made.error[:120]}"
        for made in evidence.exchanges
        if made.status is not None and not made.accepted and made.status not in _HONEST_STATUS
    ]
    return Finding("refusals are retryable", len(evidence.exchanges), broken)


def one_result_per_key(evidence: Evidence) -> Finding:
    """Every whole answer under a key is the same; replays are the same bytes."""
    answers: dict[str, list[Exchange]] = defaultdict(list)
    for made in evidence.exchanges:
        if made.key is not None and made.end == "done":
            answers[made.key].append(made)
    broken = []
    for key, all_of_key in answers.items():
        if len({_without_cache(made.raw) for made in all_of_key}) > 1:
            broken.append(f"{key} has several results: {sorted({str(made.trace_id) for made in all_of_key})}")
        elif len({made.raw for made in all_of_key if made.cache != "attached"}) > 1:
            broken.append(f"{key} {all_of_key[0].trace_id}: its replays differ in their bytes")
    return Finding("one result per key", len(answers), broken)


def keys_have_their_answer(evidence: Evidence) -> Finding:
    """A caller that comes back with its key gets the answer."""
    last = {made.key: made for made in evidence.exchanges if made.key is not None}
    broken = [f"{m.trace_id} {key}: {m.end} {m.status} {m.error[:120]}" for key, m in last.items() if m.end != "done"]
    return Finding("every key got its answer", len(last), broken)


def finished_once(evidence: Evidence) -> Finding:
    """At most one `finished` per run; exactly one where NATS was there for all of the run.

    A gateway that dies between the record of a direct run and its `finished` takes the latter with it: readers that
    are left see the end in the log.
    """
    dead = [kill.at for kill in evidence.killed if kill.target == "gateway"]
    broken, checked = [], 0
    for trace_id in evidence.heard.keys() | evidence.bus.finished.keys():
        heard, stored = evidence.heard.get(trace_id, []), evidence.bus.finished.get(trace_id, [])
        if max(len(heard), len(stored), len({*heard, *stored})) > 1:
            row = evidence.by_trace.get(trace_id)
            broken.append(f"{trace_id} {row.route if row else 'no row'}: finished heard at {heard}, stored at {stored}")
    for row in evidence.rows:
        checked += 1
        calm = not any(outage.touches(row.created - 1, row.updated + 2, _HEALING_S) for outage in evidence.nats_outages)
        orphaned = row.route == "direct" and any(row.updated - 0.1 <= at <= row.updated + 1 for at in dead)
        if calm and not orphaned and row.status != "running" and not evidence.heard.get(row.trace_id):
            broken.append(f"{row.trace_id} {row.route} {row.status}: nobody heard its end ({row.error})")
    return Finding("one `finished` per run", checked, broken)


def _away(outages: Iterable[Outage], made: Exchange) -> bool:
    return any(outage.touches(made.began, made.ended, _HEALING_S) for outage in outages)


def _copies(evidence: Evidence, made: Exchange) -> int:
    """How often the same question was asked: the row of an unkeyed question is the last asker's."""
    return sum(other.key is None and other.body["messages"] == made.body["messages"] for other in evidence.exchanges)


def _without_cache(raw: bytes) -> bytes:
    """The body without what the cache had to do with it: who attaches is told so."""
    body = orjson.loads(raw)
    (body.get("x_factory") or {}).pop("cache", None)
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
