-- launches: runs that were handed to a process of their own (debate_launch: ray, systemd).
--
-- That process gets a trace_id and nothing else; here it finds what to execute. `run` is the run as it stood in the queue,
-- as bytes that only its encoder reads. It holds a prompt: the row goes when the run has ended, and a worker that starts
-- removes what a killed one left. `silent`: its process is thought dead, so that whoever gets the run next starts another.

CREATE TABLE launches (
    trace_id    text        PRIMARY KEY,
    run         bytea       NOT NULL,
    silent      boolean     NOT NULL DEFAULT false,
    launched_at timestamptz NOT NULL DEFAULT now()
);
