-- name: add_projects(projects)!
INSERT INTO projects (project)
SELECT unnest(:projects::text[])
ON CONFLICT (project) DO NOTHING;

-- name: add_key(key_hash, prefix, project, projects)$
INSERT INTO api_keys (key_hash, prefix, project, projects)
VALUES (:key_hash, :prefix, :project, :projects)
RETURNING key_id;

-- name: key_owner(key_hash)^
-- `limited`: which of the key and its projects have limits.
SELECT key_id, project, projects, ARRAY(
    SELECT subject FROM limits
    WHERE subject = 'key:' || key_id OR subject IN (SELECT 'project:' || name FROM unnest(projects) AS name)
) AS limited
FROM api_keys
WHERE revoked_at IS NULL AND key_id = (
    SELECT key_id FROM api_keys WHERE key_hash = :key_hash
    UNION ALL
    SELECT key_id FROM retired_keys WHERE key_hash = :key_hash AND valid_until > now()
);

-- name: key_in_force(key_id)$
SELECT key_id FROM api_keys WHERE key_id = :key_id AND revoked_at IS NULL;

-- name: list_keys(project)
-- A null project lists every project's keys. `old_until`: how long an earlier key of a rotation is still good.
SELECT key_id, prefix, project, projects, created_at, rotated_at, revoked_at,
    (SELECT max(valid_until) FROM retired_keys WHERE retired_keys.key_id = api_keys.key_id AND valid_until > now()) AS old_until
FROM api_keys
WHERE :project::text IS NULL OR project = :project::text
ORDER BY created_at, key_id;

-- name: revoke_key(key_id)$
-- Null when there is no such key or it was revoked before.
WITH earlier AS (
    DELETE FROM retired_keys WHERE key_id = :key_id
)
UPDATE api_keys
SET revoked_at = now()
WHERE key_id = :key_id AND revoked_at IS NULL
RETURNING key_id;

-- name: rotate_key(key_id, key_hash, prefix, grace_s)$
-- The key in force becomes an earlier one; no earlier one outlives this grace. Null when no such key is in force.
WITH rotated AS (
    UPDATE api_keys
    SET key_hash = :key_hash, prefix = :prefix, rotated_at = now()
    WHERE key_id = :key_id AND revoked_at IS NULL
    RETURNING key_id, old.key_hash AS before
), shortened AS (
    UPDATE retired_keys
    SET valid_until = least(valid_until, now() + make_interval(secs => :grace_s))
    WHERE key_id IN (SELECT key_id FROM rotated) AND valid_until > now()
), forgotten AS (
    DELETE FROM retired_keys WHERE valid_until <= now()
), kept AS (
    INSERT INTO retired_keys (key_hash, key_id, valid_until)
    SELECT before, key_id, now() + make_interval(secs => :grace_s) FROM rotated
)
SELECT key_id FROM rotated;
