-- told: the run's `finished` reached NATS. Events are kept in NATS' memory only; after a restart of NATS they cannot tell
-- whether the end was said, and a run that is delivered once more must not say it twice. False proves nothing: the end
-- may have been said and the process died before it could note that.

ALTER TABLE idempotency_log ADD COLUMN told boolean NOT NULL DEFAULT false;
ALTER TABLE run_history ADD COLUMN told boolean NOT NULL DEFAULT false;
