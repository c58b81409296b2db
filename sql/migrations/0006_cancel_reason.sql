-- cancel_reason: somebody asked the running run to stop, and why. A message on NATS is quicker, but it is lost when nobody
-- listens; this is found by the run's owner when it extends the lease, and by a worker that takes the run up later.

ALTER TABLE idempotency_log ADD COLUMN cancel_reason text;
ALTER TABLE run_history ADD COLUMN cancel_reason text;
