-- idempotency_log: one row per (project, key), the single record of what became of a request.
--
-- The row is written before anything else happens (the claim), carries a lease while the run lives, and ends in
-- succeeded, failed or cancelled (the settle). `key` is the caller's Idempotency-Key (keyed) or else the req_id.
-- `trace_id` names the run that owns the row now; `attempt` goes up whenever another run takes the row over, so that
-- the two together are a fence: a late run that lost the row finds nothing to update.
--
-- result, error and usage are json, not jsonb: a recorded answer is replayed byte for byte, and jsonb would sort its
-- keys, rewrite its numbers and refuse the character U+0000, which a model can emit.
-- `retryable` says whether the same key may run again after this failure; it stands outside `error` so that the claim
-- needs no look into the JSON.

CREATE TABLE idempotency_log (
    project        text        NOT NULL,
    key            text        NOT NULL,
    keyed          boolean     NOT NULL,
    req_id         text        NOT NULL,
    trace_id       text        NOT NULL UNIQUE,
    route          text        NOT NULL CHECK (route IN ('direct', 'rag', 'workflow')),
    model          text        NOT NULL,
    status         text        NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'succeeded', 'failed', 'cancelled')),
    attempt        integer     NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    lease_until    timestamptz NOT NULL,
    result         json,
    error          json,
    usage          json,
    retryable      boolean     NOT NULL DEFAULT false,
    dagster_run_id text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, key)
) WITH (fillfactor = 80); -- every row is updated at least once: room on the page keeps those updates off the indexes

-- Abandoned runs are found by their lease.
CREATE INDEX idempotency_log_lease ON idempotency_log (lease_until) WHERE status = 'running';
