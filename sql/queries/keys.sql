-- name: add_projects(projects)!
INSERT INTO projects (project)
SELECT unnest(:projects::text[])
ON CONFLICT (project) DO NOTHING;

-- name: add_key(key_hash, prefix, project, projects)$
INSERT INTO api_keys (key_hash, prefix, project, projects)
VALUES (:key_hash, :prefix, :project, :projects)
RETURNING key_id;

-- name: key_owner(key_hash)^
SELECT key_id, project, projects
FROM api_keys
WHERE key_hash = :key_hash AND revoked_at IS NULL;

-- name: list_keys(project)
-- A null project lists every project's keys.
SELECT key_id, prefix, project, projects, created_at, revoked_at
FROM api_keys
WHERE :project::text IS NULL OR project = :project::text
ORDER BY created_at, key_id;

-- name: revoke_key(key_id)$
-- Null when there is no such key or it was revoked before.
UPDATE api_keys
SET revoked_at = now()
WHERE key_id = :key_id AND revoked_at IS NULL
RETURNING key_id;
