-- name: store_answer(req_id, project, scope, trace_id, model, content, answer, usage, ttl_s)!
INSERT INTO completions_cache (req_id, project, scope, trace_id, model, content, answer, usage, expires_at)
VALUES (:req_id, :project, :scope, :trace_id, :model, :content, :answer, :usage, now() + make_interval(secs => :ttl_s))
ON CONFLICT (req_id) DO UPDATE
SET trace_id = excluded.trace_id, model = excluded.model, content = excluded.content, answer = excluded.answer,
    usage = excluded.usage, created_at = now(), expires_at = excluded.expires_at;

-- name: store_vector(req_id, scope, embedding, ttl_s)!
INSERT INTO completion_vectors (req_id, scope, embedding, expires_at)
VALUES (:req_id, :scope, :embedding, now() + make_interval(secs => :ttl_s))
ON CONFLICT (req_id) DO UPDATE
SET embedding = excluded.embedding, expires_at = excluded.expires_at;

-- name: extend_vector(req_id, ttl_s)!
UPDATE completion_vectors
SET expires_at = now() + make_interval(secs => :ttl_s)
WHERE req_id = :req_id;

-- name: exact_answer(req_id)^
SELECT req_id, trace_id, answer, created_at
FROM completions_cache
WHERE req_id = :req_id AND expires_at > now();

-- name: nearest_answer(scope, embedding, threshold)^
-- `+ 0` keeps the planner on the exact path should an approximate index ever exist. Three candidates, so that one
-- whose answer has just gone does not hide the next.
SELECT cached.req_id, cached.trace_id, cached.answer, cached.created_at, -near.distance AS similarity
FROM (
    SELECT req_id, (embedding <#> :embedding::halfvec) + 0 AS distance
    FROM completion_vectors
    WHERE scope = :scope AND expires_at > now() AND vector_dims(embedding) = vector_dims(:embedding::halfvec)
    ORDER BY distance
    LIMIT 3
) AS near
JOIN completions_cache AS cached USING (req_id)
WHERE cached.expires_at > now() AND -near.distance >= :threshold::float8
ORDER BY near.distance
LIMIT 1;

-- name: delete_expired_answers(most)!
-- Their vectors go with them.
DELETE FROM completions_cache
WHERE req_id IN (SELECT req_id FROM completions_cache WHERE expires_at < now() LIMIT :most);
