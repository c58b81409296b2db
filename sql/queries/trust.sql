-- name: scope_trust(scope)^
SELECT least_similarity, confirmed, refuted FROM scope_trust WHERE scope = :scope;

-- name: confirm_scope(scope)!
INSERT INTO scope_trust AS known (scope, confirmed) VALUES (:scope, 1)
ON CONFLICT (scope) DO UPDATE SET confirmed = known.confirmed + 1, updated_at = now();

-- name: refute_answer(req_id, trace_id, reason)$
-- Null when the entry has gone or holds another answer by now. Its vector goes, as in quarantine_answer.
WITH refuted AS (
    UPDATE completions_cache
    SET quarantined_at = now(), quarantine_reason = :reason
    WHERE req_id = :req_id AND trace_id = :trace_id AND quarantined_at IS NULL
    RETURNING req_id
), gone AS (
    DELETE FROM completion_vectors WHERE req_id IN (SELECT req_id FROM refuted)
)
SELECT req_id FROM refuted;

-- name: distrust_scope(scope, least_similarity)!
INSERT INTO scope_trust AS known (scope, least_similarity, refuted) VALUES (:scope, :least_similarity, 1)
ON CONFLICT (scope) DO UPDATE
SET least_similarity = greatest(known.least_similarity, excluded.least_similarity),
    refuted = known.refuted + 1, confirmed = 0, updated_at = now();

-- name: forget_trust(older_than_s, most)!
-- Of scopes that have no answers left, some time after anybody looked at them last.
DELETE FROM scope_trust
WHERE scope IN (
    SELECT scope FROM scope_trust AS known
    WHERE updated_at < now() - make_interval(secs => :older_than_s)
      AND NOT EXISTS (SELECT FROM completion_vectors AS held WHERE held.scope = known.scope)
    LIMIT :most
);
