-- limits: what an API key, or a whole project, may use. `subject` is 'key:' and its key_id, or 'project:' and its name.
-- What has no row has no limit. Both hold for a request, so the smaller wins. `used` counts the tokens since
-- `period_start`, in UTC; it is charged in the transaction that records a run.
--
-- request_rates: when each subject may ask its whole rate again (`full_at`): a bucket that fills evenly, as one number.
-- Unlogged: it is written with every request that has a limit, needs no disk then, and a minute later nobody misses it.
--
-- passing_places: requests under way that leave no row in the log (/v1/completions), of keys that may do only so many at
-- once. A gateway that dies takes none away: the row counts until `until`, the request's own deadline.
--
-- idempotency_log.key_id: the API key that is charged for a run. Null where neither it nor its project has a limit, so that
-- other runs pay nothing for these indexes. Runs under way are counted, not kept in a counter: a run whose gateway died
-- leaves with its lease.
--
-- retired_keys: hashes of keys that were rotated and are still good for a while.

CREATE TABLE limits (
    subject             text        PRIMARY KEY CHECK (subject ~ '^(key|project):.'),
    requests_per_minute integer     CHECK (requests_per_minute BETWEEN 1 AND 1000000),
    concurrent_runs     integer     CHECK (concurrent_runs > 0),
    tokens              bigint      CHECK (tokens > 0),
    period              text        CHECK (period IN ('day', 'month')),
    period_start        timestamptz NOT NULL DEFAULT '-infinity',
    used                bigint      NOT NULL DEFAULT 0,
    CHECK ((tokens IS NULL) = (period IS NULL)),
    CHECK (num_nonnulls(requests_per_minute, concurrent_runs, tokens) > 0)
) WITH (fillfactor = 50); -- rows are updated all the time and must find room beside them

CREATE UNLOGGED TABLE request_rates (
    subject text        PRIMARY KEY,
    full_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE passing_places (
    trace_id text        PRIMARY KEY,
    key_id   uuid        NOT NULL,
    project  text        NOT NULL,
    until    timestamptz NOT NULL
);

CREATE INDEX passing_places_key ON passing_places (key_id);
CREATE INDEX passing_places_project ON passing_places (project);

ALTER TABLE idempotency_log ADD COLUMN key_id uuid;
ALTER TABLE run_history ADD COLUMN key_id uuid;
CREATE INDEX idempotency_log_key ON idempotency_log (key_id) WHERE status = 'running' AND key_id IS NOT NULL;
CREATE INDEX idempotency_log_limited ON idempotency_log (project) WHERE status = 'running' AND key_id IS NOT NULL;

CREATE TABLE retired_keys (
    key_hash    bytea       PRIMARY KEY CHECK (length(key_hash) = 32),
    key_id      uuid        NOT NULL REFERENCES api_keys,
    valid_until timestamptz NOT NULL
);

CREATE INDEX retired_keys_key ON retired_keys (key_id);
ALTER TABLE api_keys ADD COLUMN rotated_at timestamptz;
