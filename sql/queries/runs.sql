-- name: claim_run(project, key, keyed, req_id, trace_id, route, model, arrived, lease_s, key_id, traceparent)^
-- Insert the row of a new key, or take an existing row over if its run may be repeated, else leave it as it is.
-- Either way the row comes back, and `claimed` says which it was: a taken-over row always counts attempt up.
-- The last condition is the whole rule of what may be taken over; it is judged on the locked row. An unkeyed answer
-- that was recorded after this request arrived (Unix seconds) is shared with it, as if it had joined in time.
-- An ended run that is replaced is kept in run_history, where it is still found by its trace_id: as the row was when it
-- was locked, for a run may end after this statement has begun.
WITH claim AS (
INSERT INTO idempotency_log AS log (project, key, keyed, req_id, trace_id, route, model, lease_until, key_id, traceparent)
VALUES (:project, :key, :keyed, :req_id, :trace_id, :route, :model, clock_timestamp() + make_interval(secs => :lease_s), :key_id, :traceparent)
ON CONFLICT (project, key) DO UPDATE
SET (keyed, trace_id, route, model, status, attempt, lease_until, result, error, usage, retryable, dagster_run_id, created_at, updated_at, told, cancel_reason, key_id, traceparent) = (
    SELECT keyed, trace_id, route, model, status, attempt, lease_until, result, error, usage, retryable, dagster_run_id, created_at, updated_at, told, cancel_reason, key_id, traceparent
    FROM (
        VALUES
            (true, excluded.keyed, excluded.trace_id, excluded.route, excluded.model, 'running', log.attempt + 1, excluded.lease_until,
             NULL::json, NULL::json, NULL::json, false, NULL::text, now(), now(), false, NULL::text, excluded.key_id, excluded.traceparent),
            (false, log.keyed, log.trace_id, log.route, log.model, log.status, log.attempt, log.lease_until,
             log.result, log.error, log.usage, log.retryable, log.dagster_run_id, log.created_at, log.updated_at, log.told, log.cancel_reason, log.key_id, log.traceparent)
    ) AS candidate (
        taken_over, keyed, trace_id, route, model, status, attempt, lease_until,
        result, error, usage, retryable, dagster_run_id, created_at, updated_at, told, cancel_reason, key_id, traceparent
    )
    WHERE taken_over = (
        log.req_id = excluded.req_id
        AND (
            (log.status = 'succeeded' AND NOT log.keyed AND log.updated_at < to_timestamp(:arrived))
            OR (log.status = 'failed' AND NOT log.keyed)
            OR (log.status = 'failed' AND log.retryable)
            OR log.status = 'cancelled'
            OR (log.status = 'running' AND log.route IN ('direct', 'rag') AND log.lease_until < now())
        )
    )
)
RETURNING old AS was, new AS now_is
), past AS (
    INSERT INTO run_history
    SELECT (was).* FROM claim
    WHERE (was).status <> 'running' AND (now_is).attempt > (was).attempt
    ON CONFLICT (trace_id) DO NOTHING
)
SELECT (now_is).*, ((was).attempt IS NULL OR (now_is).attempt > (was).attempt) AS claimed
FROM claim;

-- name: extend_leases(trace_ids, lease_s)
-- A trace_id names the owner of a row, so a row that was ended or taken over does not come back.
UPDATE idempotency_log
SET lease_until = now() + make_interval(secs => :lease_s), updated_at = now()
WHERE trace_id = ANY (:trace_ids) AND status = 'running'
RETURNING trace_id, cancel_reason;

-- name: request_cancel(trace_id, reason)!
-- The first reason stays. The owner finds it when it extends the lease, or when it takes the run up.
UPDATE idempotency_log
SET cancel_reason = :reason, updated_at = now()
WHERE trace_id = :trace_id AND status = 'running' AND cancel_reason IS NULL;

-- name: end_abandoned(most, workflow_overdue_s, failed, cancelled)
-- A run that was asked to stop has done so, if not by itself: it ends as cancelled, its reason behind :cancelled's message.
-- SKIP LOCKED: sweepers at work side by side take different rows, and none waits for a row that is being settled.
WITH abandoned AS MATERIALIZED (
    SELECT project, key
    FROM idempotency_log
    WHERE status = 'running'
      AND lease_until < now()
      AND (route <> 'workflow' OR lease_until < now() - make_interval(secs => :workflow_overdue_s))
    ORDER BY lease_until
    LIMIT :most
    FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE idempotency_log AS log
    SET status = CASE WHEN log.cancel_reason IS NULL THEN 'failed' ELSE 'cancelled' END,
        error = CASE
            WHEN log.cancel_reason IS NULL THEN :failed::json
            ELSE jsonb_set(:cancelled::jsonb, '{message}', to_jsonb((:cancelled::jsonb ->> 'message') || log.cancel_reason))::json
        END,
        retryable = log.cancel_reason IS NULL, attempt = log.attempt + 1, updated_at = now()
    FROM abandoned
    WHERE log.project = abandoned.project AND log.key = abandoned.key
    RETURNING log.project, log.key, keyed, req_id, trace_id, route, model, status, attempt, lease_until,
              result, error, usage, dagster_run_id, created_at, log.updated_at, told, cancel_reason, traceparent
), noted AS (
    INSERT INTO untold_ends (trace_id) SELECT trace_id FROM ended ON CONFLICT (trace_id) DO NOTHING
)
SELECT * FROM ended;

-- name: settle_run(trace_id, attempt, status, result, error, usage, retryable, charged, keep, req_id, project, scope, model, content, answer_usage, corpus, ttl_s, question, embedding)^
-- The fence: only the attempt that owns the running row may end it. No row comes back when it does not, or when somebody
-- is to be charged (key_id) and the caller did not say that it will be :charged in the same transaction.
-- What goes into the cache is there when the run has ended, or neither is: one statement, because each costs a round trip.
WITH settled AS (
    UPDATE idempotency_log
    SET status = :status, result = :result, error = :error, usage = :usage, retryable = :retryable, updated_at = now()
    WHERE trace_id = :trace_id AND attempt = :attempt AND status = 'running' AND (key_id IS NULL OR :charged)
    RETURNING key_id
), kept AS (
    -- The same question, but for one thing: its scope counts versions (runs.SCOPE_VERSION), so it may be another one by now.
    INSERT INTO completions_cache (req_id, project, scope, trace_id, model, content, answer, usage, corpus, expires_at)
    SELECT :req_id::text, :project::text, :scope::text, :trace_id, :model::text, :content::text, :result, :answer_usage::json,
           :corpus::uuid, now() + make_interval(secs => :ttl_s)
    FROM settled
    WHERE :keep
    ON CONFLICT (req_id) DO UPDATE
    SET scope = excluded.scope, trace_id = excluded.trace_id, model = excluded.model, content = excluded.content,
        answer = excluded.answer, usage = excluded.usage, corpus = excluded.corpus, created_at = now(),
        expires_at = excluded.expires_at, quarantined_at = NULL, quarantine_reason = NULL
    RETURNING req_id
), placed AS (
    -- From `kept`: so the answer is locked before its vector, as everywhere else. Parts that nothing reads run backwards.
    INSERT INTO completion_vectors (req_id, scope, embedding, question, expires_at)
    SELECT req_id, :scope, :embedding::halfvec, :question::text, now() + make_interval(secs => :ttl_s)
    FROM kept
    WHERE :embedding::halfvec IS NOT NULL
    ON CONFLICT (req_id) DO UPDATE
    SET scope = excluded.scope, embedding = excluded.embedding, question = excluded.question, expires_at = excluded.expires_at
), extended AS (
    -- The same question has the same vector: a refreshed answer is found by meaning as the one before it was.
    UPDATE completion_vectors AS vector
    SET scope = :scope, expires_at = now() + make_interval(secs => :ttl_s)
    FROM kept
    WHERE :embedding::halfvec IS NULL AND vector.req_id = kept.req_id
)
SELECT key_id FROM settled;

-- name: find_run(trace_id, project)^
-- A null project asks in every project.
SELECT project, key, keyed, req_id, trace_id, route, model, status, attempt, lease_until,
       result, error, usage, dagster_run_id, created_at, updated_at, told, cancel_reason, traceparent
FROM (
    SELECT * FROM idempotency_log WHERE trace_id = :trace_id
    UNION ALL
    SELECT * FROM run_history WHERE trace_id = :trace_id
) AS runs
WHERE :project::text IS NULL OR project = :project::text
LIMIT 1;

-- name: mark_told(trace_id)!
WITH known AS (
    DELETE FROM untold_ends WHERE trace_id = :trace_id
), past AS (
    UPDATE run_history SET told = true WHERE trace_id = :trace_id
)
UPDATE idempotency_log SET told = true WHERE trace_id = :trace_id AND status <> 'running';

-- name: take_untold(older_than_s, most)
UPDATE untold_ends
SET taken_at = clock_timestamp()
WHERE trace_id IN (
    SELECT trace_id FROM untold_ends
    WHERE taken_at < now() - make_interval(secs => :older_than_s)
    ORDER BY taken_at
    LIMIT :most
    FOR UPDATE SKIP LOCKED
)
RETURNING trace_id;

-- name: delete_old_runs(older_than_s, most)!
-- Rows are kept for the retention, then go; a key may be used anew after that.
WITH old AS MATERIALIZED (
    SELECT trace_id FROM idempotency_log
    WHERE status <> 'running' AND updated_at < now() - make_interval(secs => :older_than_s)
    LIMIT :most
    FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_log WHERE trace_id IN (SELECT trace_id FROM old);

-- name: delete_old_history(older_than_s, most)!
DELETE FROM run_history
WHERE trace_id IN (
    SELECT trace_id FROM run_history WHERE updated_at < now() - make_interval(secs => :older_than_s) LIMIT :most
);

-- name: note_dagster_run(trace_id, dagster_run_id)!
UPDATE idempotency_log
SET dagster_run_id = :dagster_run_id, updated_at = now()
WHERE trace_id = :trace_id;
