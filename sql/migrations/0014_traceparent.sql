-- traceparent: the trace of the caller that asked for the run, as W3C writes it. Spans of the run join that trace; it never
-- names the run, because one trace of a caller may hold many.

ALTER TABLE idempotency_log ADD COLUMN traceparent text;
ALTER TABLE run_history ADD COLUMN traceparent text;
