-- name: put_launch(trace_id, run)!
INSERT INTO launches AS known (trace_id, run) VALUES (:trace_id, :run)
ON CONFLICT (trace_id) DO UPDATE SET run = excluded.run, silent = false, launched_at = now();

-- name: find_launch(trace_id)$
SELECT run FROM launches WHERE trace_id = :trace_id;

-- name: has_process(trace_id)$
SELECT EXISTS (SELECT FROM launches WHERE trace_id = :trace_id AND NOT silent);

-- name: mark_silent(trace_id)!
UPDATE launches SET silent = true WHERE trace_id = :trace_id;

-- name: drop_launch(trace_id)!
DELETE FROM launches WHERE trace_id = :trace_id;

-- name: drop_ended_launches()!
-- Only a run of the log that is `running` may still be asked for.
DELETE FROM launches AS launched
WHERE NOT EXISTS (SELECT FROM idempotency_log AS log WHERE log.trace_id = launched.trace_id AND log.status = 'running');
