"""RunStore on Postgres: the idempotency log."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from serve_app.documents import NO_CORPUS
from serve_app.limits import Account
from serve_app.ports import Claim, Leases, RunRecord
from serve_app.runs import Answer, Outcome, Run, RunStatus
from serve_app.store.answers_json import answer_from_json, answer_to_json
from serve_app.store.limits import charge, hold_place
from serve_app.store.outcomes import (
    abandoned_error,
    answer_to_keep,
    cancelled_error,
    check_terminal,
    failed_retryably,
    tokens_to_charge,
)
from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.queries import load_queries


class PostgresRunStore:
    """The idempotency log in Postgres; settle also feeds the answer cache."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def claim(self, run: Run, *, lease_s: float) -> Claim:
        """See ports.RunStore. The rule of what may be taken over stands in `sql/queries/runs.sql`."""
        if run.key_id is None:
            async with self._pool.connection() as connection:
                row = await self._claim(connection, run, lease_s)
        else:
            async with self._pool.shared_lane(), self._pool.transaction() as connection:
                row = await self._claim(connection, run, lease_s)
                if row["claimed"]:
                    await hold_place(connection, Account(run.key_id, run.project))  # raises: then nothing was claimed
        return Claim(claimed=row["claimed"], record=_record(row))

    async def _claim(self, connection: Connection, run: Run, lease_s: float) -> Any:
        return await self._queries.claim_run(
            connection,
            project=run.project,
            key=run.key,
            keyed=run.keyed,
            req_id=run.claim_id,
            trace_id=run.trace_id,
            route=run.route,
            model=run.question.model_id,
            arrived=run.started,
            lease_s=lease_s,
            key_id=run.key_id and UUID(run.key_id),
            traceparent=run.traceparent,
        )

    async def extend_leases(self, trace_ids: Sequence[str], *, lease_s: float) -> Leases:
        """See ports.RunStore."""
        if not trace_ids:
            return Leases()
        async with self._pool.connection() as connection:
            rows = self._queries.extend_leases(connection, trace_ids=list(trace_ids), lease_s=lease_s)
            reasons = {row["trace_id"]: row["cancel_reason"] async for row in rows}
        cancels = {trace_id: reason for trace_id, reason in reasons.items() if reason is not None}
        return Leases(frozenset(reasons), cancels)

    async def request_cancel(self, trace_id: str, reason: str) -> None:
        """See ports.RunStore."""
        reason = reason.replace("\x00", "\ufffd")  # Postgres text cannot hold U+0000
        async with self._pool.connection() as connection:
            await self._queries.request_cancel(connection, trace_id=trace_id, reason=reason)

    async def end_abandoned(self, *, limit: int, workflow_overdue_s: float = 0) -> list[RunRecord]:
        """See ports.RunStore."""
        async with self._pool.connection() as connection:
            rows = self._queries.end_abandoned(
                connection,
                most=limit,
                workflow_overdue_s=workflow_overdue_s,
                failed=abandoned_error(),
                cancelled=cancelled_error(""),
            )
            return [_record(row) async for row in rows]

    async def take_untold(self, *, older_than_s: float, limit: int) -> list[str]:
        """See ports.RunStore."""
        async with self._pool.connection() as connection:
            rows = self._queries.take_untold(connection, older_than_s=older_than_s, most=limit)
            return [row["trace_id"] async for row in rows]

    async def settle(self, run: Run, outcome: Outcome) -> bool:
        """See ports.RunStore."""
        check_terminal(run, outcome)
        answer = answer_to_keep(run, outcome)
        if run.key_id is None and _stands_alone(run):
            async with self._pool.connection() as connection:
                if await self._settle(connection, run, outcome, answer, charged=False) is not None:
                    return True
            # Not ours any more, or somebody is charged for it: what comes from the queue does not say who.
        async with self._pool.transaction() as connection:
            if answer is not None and not await self._rests_on_what_is_known(connection, run):
                answer = None
            settled = await self._settle(connection, run, outcome, answer, charged=True)
            if settled is None:
                return False
            if settled["key_id"] is not None:
                # Last: others of the project wait for this row until the commit.
                await charge(connection, Account(str(settled["key_id"]), run.project), tokens_to_charge(outcome))
        return True

    async def find(self, trace_id: str, *, project: str | None = None) -> RunRecord | None:
        """See ports.RunStore."""
        async with self._pool.connection() as connection:
            row = await self._queries.find_run(connection, trace_id=trace_id, project=project)
        return None if row is None else _record(row)

    async def note_dagster_run(self, trace_id: str, dagster_run_id: str) -> None:
        """See ports.RunStore."""
        async with self._pool.connection() as connection:
            await self._queries.note_dagster_run(connection, trace_id=trace_id, dagster_run_id=dagster_run_id)

    async def mark_told(self, trace_id: str) -> None:
        """See ports.RunStore."""
        async with self._pool.connection() as connection:
            await self._queries.mark_told(connection, trace_id=trace_id)

    async def purge(self, *, older_than_s: float, limit: int) -> None:
        """See ports.RunStore."""
        async with self._pool.connection() as connection:
            await self._queries.delete_old_runs(connection, older_than_s=older_than_s, most=limit)
            await self._queries.delete_old_history(connection, older_than_s=older_than_s, most=limit)
            await self._queries.delete_expired_answers(connection, most=limit)
            await self._queries.forget_trust(connection, older_than_s=older_than_s, most=limit)
            await self._queries.drop_ended_launches(connection)  # they hold prompts, and their worker may be gone for good

    async def _rests_on_what_is_known(self, connection: Connection, run: Run) -> bool:
        """Whether the project's documents are still those of the run; they stay so until this transaction has ended."""
        return _stands_alone(run) or (
            str(await self._queries.hold_corpus(connection, project=run.project)) == run.question.corpus
        )

    async def _settle(self, connection: Connection, run: Run, outcome: Outcome, answer: Answer | None, *, charged: bool) -> Any:
        """End the run; `answer` goes into the cache with it. Its row, or None."""
        return await self._queries.settle_run(
            connection,
            trace_id=run.trace_id,
            attempt=run.attempt,
            status=outcome.status.value,
            result=answer_to_json(outcome.answer) if outcome.answer else None,
            error=outcome.error,
            usage=outcome.usage.model_dump(exclude_none=True),
            retryable=failed_retryably(outcome),
            charged=charged,
            keep=answer is not None,
            req_id=run.req_id,
            project=run.project,
            scope=run.question.scope,
            model=answer.model if answer else None,
            content=_storable(answer.text) if answer else None,
            answer_usage=answer.usage.model_dump(exclude_none=True) if answer else None,
            corpus=None if _stands_alone(run) else UUID(run.question.corpus),
            ttl_s=run.cache.ttl_s,
            question=_storable(run.question.last_user_text or "") if run.embedding else None,
            embedding=run.embedding or None,
        )


def _stands_alone(run: Run) -> bool:
    """Whether the answer rests on no documents of the project."""
    return run.question.corpus in (None, NO_CORPUS)


def _storable(text: str) -> str:
    return text.replace("\x00", "\ufffd")  # Postgres text cannot hold U+0000; `result` keeps it


def _record(row: Any) -> RunRecord:
    return RunRecord(
        trace_id=row["trace_id"],
        req_id=row["req_id"],
        project=row["project"],
        key=row["key"],
        keyed=row["keyed"],
        route=row["route"],
        model=row["model"],
        status=RunStatus(row["status"]),
        attempt=row["attempt"],
        created_at=row["created_at"].timestamp(),
        updated_at=row["updated_at"].timestamp(),
        lease_until=row["lease_until"].timestamp(),
        answer=answer_from_json(row["result"]) if row["result"] is not None else None,
        error=row["error"],
        usage=row["usage"],
        dagster_run_id=row["dagster_run_id"],
        told=row["told"],
        cancel_reason=row["cancel_reason"],
        traceparent=row["traceparent"],
    )
