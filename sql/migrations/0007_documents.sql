-- documents: what a project knows, one row per text: a file of an ingested folder, or later one sent over the API.
-- chunks: the passages of a document, each with its embedding; found by meaning, inside one project.
--
-- `source` says where a document came from (a folder), `source_path` which text it is there; together they name it inside
-- its project. `content_hash` is the sha256 of the content. `chunked_hash` and `chunked_with` say of which content and by
-- which embedding model and sizes the chunks were made: a document where they differ from what is wanted now is stale,
-- and only stale documents are chunked again. Until then its old chunks stay; they are replaced in one transaction.
--
-- A chunk carries its project, and the two-column key ties it to its document's: a chunk cannot belong to another project
-- than its document does. `start_char` and `end_char` say where in the content it stands. The number of dimensions is
-- left open, as in 0002.
--
-- completions_cache.quarantined_at: the answer was found to be bad and is never returned. The row stays until it expires,
-- with the reason, so that an operator can look at it; its vector goes at once. A new answer to the question lifts it.

CREATE TABLE documents (
    document_id  uuid        PRIMARY KEY DEFAULT uuidv7(),
    project      text        NOT NULL REFERENCES projects,
    source       text        NOT NULL,
    source_path  text        NOT NULL,
    content      text        NOT NULL,
    content_hash text        NOT NULL CHECK (length(content_hash) = 64),
    chunked_hash text,
    chunked_with text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project, source, source_path),
    UNIQUE (project, document_id)
);

CREATE TABLE chunks (
    document_id uuid        NOT NULL,
    ordinal     integer     NOT NULL CHECK (ordinal >= 0),
    project     text        NOT NULL,
    content     text        NOT NULL,
    start_char  integer     NOT NULL CHECK (start_char >= 0),
    end_char    integer     NOT NULL CHECK (end_char > start_char),
    tokens      integer     NOT NULL CHECK (tokens > 0),
    embedding   halfvec     NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (document_id, ordinal),
    FOREIGN KEY (project, document_id) REFERENCES documents (project, document_id) ON DELETE CASCADE
);

CREATE INDEX chunks_project ON chunks (project);

ALTER TABLE completions_cache ADD COLUMN quarantined_at timestamptz, ADD COLUMN quarantine_reason text;
