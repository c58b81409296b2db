-- completions_cache: answers that may be given again, one per question (req_id).
-- completion_vectors: the semantic side, one narrow row per cached answer that may be found by meaning.
--
-- A row past `expires_at` is never returned; the time is absolute, a hit does not extend it. `answer` is json for the
-- reason given in 0001. `content` is its plain text, for people and reports.
--
-- A semantic search reads the live rows of one scope through the B-tree and compares each vector exactly: no
-- approximate index, because recall inside a small scope must be complete and inserts must stay cheap. The number of
-- dimensions is left open, so that another embedding model needs no migration; the search skips vectors of another
-- length. Vectors have unit length, so similarity is the negated `<#>`.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE completions_cache (
    req_id     text        PRIMARY KEY,
    project    text        NOT NULL,
    scope      text        NOT NULL,
    trace_id   text        NOT NULL,
    model      text        NOT NULL,
    content    text        NOT NULL,
    answer     json        NOT NULL,
    usage      json        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

CREATE INDEX completions_cache_expires_at ON completions_cache (expires_at);

CREATE TABLE completion_vectors (
    req_id     text        PRIMARY KEY REFERENCES completions_cache ON DELETE CASCADE,
    scope      text        NOT NULL,
    embedding  halfvec     NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE INDEX completion_vectors_scope ON completion_vectors (scope, expires_at);
