-- untold_ends: runs that a sweeper ended, until their `finished` has reached NATS.
--
-- A sweeper records the end first and publishes it after that. If it dies in between, the run's owner, who would have
-- published, is gone too: without this note nobody would ever tell. The note is written by the statement that ends the
-- run. `taken_at` is when somebody last set out to tell it; after a while another may try.

CREATE TABLE untold_ends (
    trace_id text        PRIMARY KEY,
    taken_at timestamptz NOT NULL DEFAULT now()
);
