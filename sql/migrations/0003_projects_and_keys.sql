-- projects: the tenants. Everything a caller stores or reads belongs to one.
-- api_keys: who may call. Only the sha256 of a key is kept; `prefix` is its first characters, shown in listings so
-- that people can tell keys apart. `project` is the key's own, `projects` all that it may name (its own included).
-- A revoked key stays as a record and is never accepted again.

CREATE TABLE projects (
    project    text        PRIMARY KEY CHECK (project ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    key_id     uuid        PRIMARY KEY DEFAULT uuidv7(),
    key_hash   bytea       NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    prefix     text        NOT NULL,
    project    text        NOT NULL REFERENCES projects,
    projects   text[]      NOT NULL CHECK (project = ANY (projects)),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

CREATE INDEX api_keys_project ON api_keys (project);
