"""Doubles of the store that live in memory: same contract, one process, nothing survives it.

They serve tests and planning. One contract suite runs on them and on Postgres.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from serve_app.errors import Overloaded
from serve_app.ports import CacheHit, Claim, Leases, RunRecord
from serve_app.runs import Answer, Outcome, Run, RunStatus
from serve_app.store.outcomes import abandoned_error, answer_to_keep, cancelled_error, check_terminal, failed_retryably

_CANDIDATES: Final = 3  # entries that `nearest` gives at most
_GATEWAY_ROUTES: Final = ("direct", "rag")


@dataclass(frozen=True, slots=True)
class _Entry:
    hit: CacheHit
    scope: str
    question: str | None
    embedding: tuple[float, ...] | None
    expires_at: float
    corpus_of: str | None = None  # the project whose documents it rests on


class InMemoryAnswerCache:
    """AnswerCache in memory. Holds `max_entries`; the one written longest ago goes first."""

    def __init__(self, *, max_entries: int = 10_000) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._corpora: dict[str, str] = {}  # the newest of each project
        self.least_similarity: dict[str, float] = {}  # of scopes that verification distrusts

    def take_corpus(self, project: str, version: str) -> None:
        """What the project knows has changed: answers that rest on the version before go, and late ones are not kept."""
        self._corpora[project] = version
        for req_id in [req_id for req_id, entry in self._entries.items() if entry.corpus_of == project]:
            del self._entries[req_id]

    async def exact(self, req_id: str) -> CacheHit | None:
        """See ports.AnswerCache."""
        entry = self._entries.get(req_id)
        return entry.hit if entry is not None and entry.expires_at > time.time() else None

    async def nearest(self, scope: str, embedding: Sequence[float], *, threshold: float) -> list[CacheHit]:
        """See ports.AnswerCache."""
        now = time.time()
        found = [
            replace(entry.hit, similarity=_dot(entry.embedding, embedding), question=entry.question)
            for entry in self._entries.values()
            if entry.scope == scope and entry.expires_at > now and entry.embedding and len(entry.embedding) == len(embedding)
        ]
        nearest = sorted(found, key=lambda hit: hit.similarity, reverse=True)[:_CANDIDATES]
        threshold = max(threshold, self.least_similarity.get(scope, 0.0))
        return [hit for hit in nearest if hit.similarity >= threshold]

    def quarantine(self, req_id: str, trace_id: str) -> bool:
        """Give the entry to nobody any more; False when it holds another answer by now."""
        entry = self._entries.get(req_id)
        if entry is None or entry.hit.trace_id != trace_id:
            return False
        del self._entries[req_id]
        return True

    def keep(self, run: Run, answer: Answer) -> None:
        """Store the answer of a run that is being settled, unless its corpus is not the newest any more."""
        corpus = run.question.corpus
        if corpus is not None and corpus != self._corpora.get(run.project, corpus):
            return
        now = time.time()
        before = self._entries.pop(run.req_id, None)
        embedding = tuple(run.embedding) if run.embedding else (before.embedding if before else None)
        hit = CacheHit(req_id=run.req_id, trace_id=run.trace_id, answer=answer, similarity=1.0, created_at=now)
        self._entries[run.req_id] = _Entry(
            hit,
            run.question.scope,
            run.question.last_user_text,
            embedding,
            now + run.cache.ttl_s,
            run.project if corpus is not None else None,
        )
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)


class InMemoryRunStore:
    """RunStore in memory. Holds `max_runs`; beyond that the oldest ended run is forgotten."""

    def __init__(self, cache: InMemoryAnswerCache | None = None, *, max_runs: int = 10_000) -> None:
        self._cache = cache
        self._max_runs = max_runs
        self._rows: dict[tuple[str, str], RunRecord] = {}
        self._keys: dict[str, tuple[str, str]] = {}  # trace_id -> its row
        self._retryable: set[str] = set()  # trace_ids
        self._untold: dict[str, float] = {}  # trace_id to when somebody last set out to tell its end

    async def claim(self, run: Run, *, lease_s: float) -> Claim:
        """See ports.RunStore. Raises errors.Overloaded when every run it holds is still running."""
        place = (run.project, run.key)
        row = self._rows.get(place)
        if row is not None and not self._may_take_over(row, run):
            return Claim(claimed=False, record=row)
        if row is None:
            self._make_room()
        else:
            self._forget(place)
        now = time.time()
        record = RunRecord(
            trace_id=run.trace_id,
            req_id=run.claim_id,
            project=run.project,
            key=run.key,
            keyed=run.keyed,
            route=run.route,
            model=run.question.model_id,
            status=RunStatus.RUNNING,
            attempt=1 if row is None else row.attempt + 1,
            created_at=now,
            updated_at=now,
            lease_until=now + lease_s,
            traceparent=run.traceparent,
        )
        self._rows[place] = record
        self._keys[run.trace_id] = place
        return Claim(claimed=True, record=record)

    async def extend_leases(self, trace_ids: Sequence[str], *, lease_s: float) -> Leases:
        """See ports.RunStore."""
        now, ours, cancels = time.time(), set(), {}
        for trace_id in trace_ids:
            row = await self.find(trace_id)
            if row is not None and row.status is RunStatus.RUNNING:
                self._rows[self._keys[trace_id]] = replace(row, lease_until=now + lease_s, updated_at=now)
                ours.add(trace_id)
                if row.cancel_reason is not None:
                    cancels[trace_id] = row.cancel_reason
        return Leases(frozenset(ours), cancels)

    async def request_cancel(self, trace_id: str, reason: str) -> None:
        """See ports.RunStore."""
        row = await self.find(trace_id)
        if row is not None and row.status is RunStatus.RUNNING and row.cancel_reason is None:
            self._rows[self._keys[trace_id]] = replace(row, cancel_reason=reason, updated_at=time.time())

    async def end_abandoned(self, *, limit: int, workflow_overdue_s: float = 0) -> list[RunRecord]:
        """See ports.RunStore."""
        now = time.time()
        over = [
            (row.lease_until, place)
            for place, row in self._rows.items()
            if row.status is RunStatus.RUNNING
            and row.lease_until < now - (0 if row.route in _GATEWAY_ROUTES else workflow_overdue_s)
        ]
        ended = []
        for _, place in sorted(over)[:limit]:
            row = self._rows[place]
            if row.cancel_reason is None:
                status, error = RunStatus.FAILED, abandoned_error()
                self._retryable.add(row.trace_id)
            else:
                status, error = RunStatus.CANCELLED, cancelled_error(row.cancel_reason)
            self._rows[place] = replace(row, status=status, attempt=row.attempt + 1, error=error, updated_at=now)
            self._untold[row.trace_id] = now
            ended.append(self._rows[place])
        return ended

    async def take_untold(self, *, older_than_s: float, limit: int) -> list[str]:
        """See ports.RunStore."""
        now = time.time()
        taken = [trace_id for trace_id, since in self._untold.items() if since < now - older_than_s][:limit]
        for trace_id in taken:
            del self._untold[trace_id]
            self._untold[trace_id] = now  # the last taken is the last in line
        return taken

    async def mark_told(self, trace_id: str) -> None:
        """See ports.RunStore."""
        self._untold.pop(trace_id, None)
        row = await self.find(trace_id)
        if row is not None and row.status.terminal:
            self._rows[self._keys[trace_id]] = replace(row, told=True)

    async def purge(self, *, older_than_s: float, limit: int) -> None:
        """See ports.RunStore."""
        before = time.time() - older_than_s
        old = [place for place, row in self._rows.items() if row.status.terminal and row.updated_at < before]
        for place in old[:limit]:
            self._forget(place)

    async def settle(self, run: Run, outcome: Outcome) -> bool:
        """See ports.RunStore."""
        check_terminal(run, outcome)
        row = await self.find(run.trace_id)
        if row is None or row.attempt != run.attempt or row.status is not RunStatus.RUNNING:
            return False
        self._rows[self._keys[run.trace_id]] = replace(
            row,
            status=outcome.status,
            answer=outcome.answer,
            error=outcome.error,
            usage=outcome.usage.model_dump(exclude_none=True),
            updated_at=time.time(),
        )
        if failed_retryably(outcome):
            self._retryable.add(run.trace_id)
        answer = answer_to_keep(run, outcome)
        if answer is not None and self._cache is not None:
            self._cache.keep(run, answer)
        return True

    async def find(self, trace_id: str, *, project: str | None = None) -> RunRecord | None:
        """See ports.RunStore."""
        place = self._keys.get(trace_id)
        return self._rows[place] if place is not None and project in (None, place[0]) else None

    async def note_dagster_run(self, trace_id: str, dagster_run_id: str) -> None:
        """See ports.RunStore."""
        row = await self.find(trace_id)
        if row is not None:
            self._rows[self._keys[trace_id]] = replace(row, dagster_run_id=dagster_run_id, updated_at=time.time())

    def _may_take_over(self, row: RunRecord, run: Run) -> bool:
        if row.req_id != run.claim_id:
            return False
        if row.status is RunStatus.RUNNING:
            return row.route in _GATEWAY_ROUTES and row.lease_until < time.time()
        if row.status is RunStatus.SUCCEEDED:
            return not row.keyed and row.updated_at < run.started
        return not row.keyed or row.status is RunStatus.CANCELLED or row.trace_id in self._retryable

    def _make_room(self) -> None:
        if len(self._rows) < self._max_runs:
            return
        oldest_ended = next((place for place, row in self._rows.items() if row.status.terminal), None)
        if oldest_ended is None:
            raise Overloaded(f"all {self._max_runs} runs that this store can hold are running")
        self._forget(oldest_ended)

    def _forget(self, place: tuple[str, str]) -> None:
        trace_id = self._rows.pop(place).trace_id
        del self._keys[trace_id]
        self._retryable.discard(trace_id)
        self._untold.pop(trace_id, None)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return min(1.0, sum(a * b for a, b in zip(left, right, strict=True)))
