-- run_history: ended runs whose row another run of the same question has taken over.
--
-- idempotency_log has one row per key, so an unkeyed question that is asked again replaces the row of its earlier run.
-- The earlier run still has a name that its caller may ask for (GET /v1/runs/{trace_id}, its events): it is kept here
-- until the retention is over. Same columns, so that a row moves as it is; found by trace_id only.

CREATE TABLE run_history (LIKE idempotency_log INCLUDING DEFAULTS, PRIMARY KEY (trace_id));

CREATE INDEX run_history_updated_at ON run_history (updated_at);
CREATE INDEX idempotency_log_updated_at ON idempotency_log (updated_at) WHERE status <> 'running';
