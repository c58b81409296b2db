"""Admission: the claim on the idempotency log decides whether a request executes, attaches or replays."""

from dataclasses import dataclass, replace

from serve_app.errors import KeyReused, Unavailable
from serve_app.ports import RunRecord, RunStore
from serve_app.runs import Run
from serve_app.telemetry import logger


@dataclass(frozen=True, slots=True)
class Execute:
    """This request executes `run`.

    `created`: when the log first saw it, Unix seconds. `seen_before`: the key had a row already. `recorded`: the log
    knows the run.
    """

    run: Run
    created: float
    seen_before: bool
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class Attach:
    """The same question is being answered right now: read along."""

    record: RunRecord


@dataclass(frozen=True, slots=True)
class Replay:
    """The key's run has ended: give its recorded result again."""

    record: RunRecord


async def admit(store: RunStore, run: Run, *, lease_s: float) -> Execute | Attach | Replay:
    """Claim the run's key: the first durable write.

    Raises errors.KeyReused when the caller's Idempotency-Key stands for another body, errors.Unavailable when the key's
    run is being cancelled, or the log is away and the request cannot do without it (a keyed request, the workflow
    route, or a key with limits), errors.RateLimited when the key or project has all its runs under way.
    """
    try:
        claim = await store.claim(run, lease_s=lease_s)
    except Unavailable:
        if run.keyed or run.route == "workflow" or run.key_id is not None:
            raise
        # A plain question needs no log to be answered well; it only loses single-flight and the cache.
        logger.warning("idempotency log is away: the run is answered without a record")
        return Execute(run, run.started, seen_before=False, recorded=False)
    record = claim.record
    if claim.claimed:
        owned = replace(run, attempt=record.attempt)
        return Execute(owned, record.created_at, seen_before=record.created_at < run.started - 0.001 or record.attempt > 1)
    if record.req_id != run.claim_id:
        raise KeyReused(
            "this Idempotency-Key was used with another request body; use a new key for a new request", param="Idempotency-Key"
        )
    if record.status.terminal:
        return Replay(record)
    if record.cancel_reason is not None:
        # Whoever joined it now would be told of a cancel that another caller wanted.
        raise Unavailable("the same question is just being cancelled; ask again", retry_after_s=1)
    return Attach(record)
