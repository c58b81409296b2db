-- name: enter_limits(key, project)
-- Spend one request of a key and of its project, and say where both stand: a row for each that has a limit.
-- An exhausted budget spends no request; a key over its own rate takes nothing from its project. Each bucket is judged
-- and changed on its own locked row, so that any number of gateways share it exactly. One request is worth `step`,
-- rounded down to microseconds: rounded up, the last request of a full bucket would not fit.
WITH asked AS MATERIALIZED (
    SELECT subject, requests_per_minute, tokens,
        make_interval(secs => (60000000 / requests_per_minute) / 1e6) AS step,
        CASE WHEN period_start < date_trunc(period, now(), 'UTC') THEN 0 ELSE used END AS used,
        (date_trunc(period, now() AT TIME ZONE 'UTC') + ('1 ' || period)::interval) AT TIME ZONE 'UTC' AS period_end
    FROM limits
    WHERE subject IN (:key, :project)
), budget AS (
    SELECT coalesce(bool_and(used < tokens), true) AS holds FROM asked
), of_key AS (
    INSERT INTO request_rates AS rate (subject, full_at)
    SELECT subject, now() + step FROM asked, budget WHERE holds AND subject = :key AND requests_per_minute IS NOT NULL
    ON CONFLICT (subject) DO UPDATE
    SET full_at = CASE
        WHEN greatest(rate.full_at, now()) + (excluded.full_at - now()) <= now() + interval '1 minute'
        THEN greatest(rate.full_at, now()) + (excluded.full_at - now())
        ELSE rate.full_at
    END
    RETURNING new.subject, new.full_at, old.full_at IS DISTINCT FROM new.full_at AS taken
), of_project AS (
    INSERT INTO request_rates AS rate (subject, full_at)
    SELECT subject, now() + step
    FROM asked, budget
    WHERE holds AND subject = :project AND requests_per_minute IS NOT NULL AND NOT EXISTS (SELECT FROM of_key WHERE NOT taken)
    ON CONFLICT (subject) DO UPDATE
    SET full_at = CASE
        WHEN greatest(rate.full_at, now()) + (excluded.full_at - now()) <= now() + interval '1 minute'
        THEN greatest(rate.full_at, now()) + (excluded.full_at - now())
        ELSE rate.full_at
    END
    RETURNING new.subject, new.full_at, old.full_at IS DISTINCT FROM new.full_at AS taken
)
SELECT subject, requests_per_minute, tokens, used, rates.taken,
    extract(epoch FROM step)::float8 AS step_s,
    -- Null where no bucket was touched: greatest() alone would make that a full one.
    CASE WHEN rates.full_at IS NOT NULL THEN greatest(0, extract(epoch FROM rates.full_at - now())) END::float8 AS full_in_s,
    extract(epoch FROM period_end - now())::float8 AS period_left_s
FROM asked
LEFT JOIN (SELECT * FROM of_key UNION ALL SELECT * FROM of_project) AS rates USING (subject);

-- name: hold_concurrency(subjects)
-- The rows stay locked until the transaction ends: who counts after this sees every run that was let in before.
SELECT subject, concurrent_runs
FROM limits
WHERE subject = ANY (:subjects) AND concurrent_runs IS NOT NULL
ORDER BY subject
FOR NO KEY UPDATE;

-- name: count_running(key_id, project)^
-- What a key, and what a project, has under way. Runs without a key_id belong to callers without any limit.
SELECT
    (SELECT count(*) FROM idempotency_log WHERE status = 'running' AND key_id = :key_id AND lease_until > now())
    + (SELECT count(*) FROM passing_places WHERE key_id = :key_id AND until > now()) AS of_key,
    (SELECT count(*) FROM idempotency_log
     WHERE status = 'running' AND key_id IS NOT NULL AND project = :project AND lease_until > now())
    + (SELECT count(*) FROM passing_places WHERE project = :project AND until > now()) AS of_project;

-- name: take_place(trace_id, key_id, project, for_s)!
-- SKIP LOCKED: nobody waits for another tenant's row that is being left.
WITH gone AS (
    DELETE FROM passing_places
    WHERE trace_id IN (SELECT trace_id FROM passing_places WHERE until < now() LIMIT 100 FOR UPDATE SKIP LOCKED)
)
INSERT INTO passing_places (trace_id, key_id, project, until)
VALUES (:trace_id, :key_id, :project, now() + make_interval(secs => :for_s));

-- name: leave_place(trace_id)!
DELETE FROM passing_places WHERE trace_id = :trace_id;

-- name: charge_tokens(subjects, tokens)!
-- In the order of all who lock these rows.
WITH held AS MATERIALIZED (
    SELECT subject FROM limits WHERE subject = ANY (:subjects) AND tokens IS NOT NULL ORDER BY subject FOR NO KEY UPDATE
)
UPDATE limits
SET used = CASE WHEN period_start < date_trunc(period, now(), 'UTC') THEN 0 ELSE used END + :tokens,
    period_start = greatest(period_start, date_trunc(period, now(), 'UTC'))
FROM held
WHERE limits.subject = held.subject;

-- name: set_limits(subject, requests_per_minute, concurrent_runs, tokens, period)!
-- What was used in this period stays used.
INSERT INTO limits (subject, requests_per_minute, concurrent_runs, tokens, period)
VALUES (:subject, :requests_per_minute, :concurrent_runs, :tokens, :period)
ON CONFLICT (subject) DO UPDATE
SET requests_per_minute = excluded.requests_per_minute, concurrent_runs = excluded.concurrent_runs,
    tokens = excluded.tokens, period = excluded.period;

-- name: drop_limits(subject)!
WITH rate AS (
    DELETE FROM request_rates WHERE subject = :subject
)
DELETE FROM limits WHERE subject = :subject;

-- name: list_limits()
SELECT subject, requests_per_minute, concurrent_runs, tokens, period,
    CASE WHEN period_start < date_trunc(period, now(), 'UTC') THEN 0 ELSE used END AS used
FROM limits
ORDER BY subject;
