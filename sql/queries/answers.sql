-- name: exact_answer(req_id)^
SELECT req_id, trace_id, answer, created_at
FROM completions_cache
WHERE req_id = :req_id AND expires_at > now() AND quarantined_at IS NULL;

-- name: nearest_answers(scope, embedding, threshold)
-- Exact, row by row: `+ 0` keeps the planner from the HNSW index that a huge scope may have (../hnsw). A few candidates,
-- because the guards may object to the nearest, and the answer of another may have just gone. They compare questions, so
-- a row without one (written before 0010) is no candidate. The few that are similar enough are picked out first, which
-- spares sorting all. CASE, because vectors of different length cannot be compared at all.
SELECT cached.req_id, cached.trace_id, cached.answer, cached.created_at, near.question, -near.distance AS similarity
FROM (
    SELECT req_id, question, (embedding <#> :embedding::halfvec) + 0 AS distance
    FROM completion_vectors
    WHERE scope = :scope AND expires_at > now() AND question IS NOT NULL
        AND CASE WHEN vector_dims(embedding) = vector_dims(:embedding::halfvec) THEN
            -- What verification found out about the scope counts whatever the request asks for: scope_trust, 0012.
            -(embedding <#> :embedding::halfvec)
                >= greatest(:threshold::float8, (SELECT least_similarity FROM scope_trust WHERE scope = :scope))
        END
    ORDER BY distance
    LIMIT 3
) AS near
JOIN completions_cache AS cached USING (req_id)
WHERE cached.expires_at > now() AND cached.quarantined_at IS NULL
ORDER BY near.distance;

-- name: delete_expired_answers(most)!
-- Their vectors go with them.
DELETE FROM completions_cache
WHERE req_id IN (SELECT req_id FROM completions_cache WHERE expires_at < now() LIMIT :most);

-- name: expired_answers(since_s)$
SELECT count(*) FROM completions_cache WHERE expires_at < now() - make_interval(secs => :since_s);

-- name: quarantine_answer(req_id, reason)$
-- Its vector goes, so that quarantined answers do not take the places of good ones in a search.
WITH gone AS (DELETE FROM completion_vectors WHERE req_id = :req_id)
UPDATE completions_cache
SET quarantined_at = now(), quarantine_reason = :reason
WHERE req_id = :req_id AND quarantined_at IS NULL
RETURNING req_id;

-- name: quarantine_bad_answers(after, dimensions, most)^
-- One page in the order of req_id; `upto` is its last, or null after the last page. An answer that is replaced meanwhile
-- has another created_at, and is left alone.
WITH page AS MATERIALIZED (
    SELECT req_id, content, created_at, quarantined_at
    FROM completions_cache
    WHERE req_id > :after
    ORDER BY req_id
    LIMIT :most
), bad AS (
    SELECT page.req_id, page.created_at,
           CASE
               WHEN page.content !~ '\S' THEN 'empty answer'
               ELSE format('vector of %s dimensions instead of %s', vector_dims(embedding), :dimensions::int)
           END AS reason
    FROM page
    LEFT JOIN completion_vectors USING (req_id)
    WHERE page.quarantined_at IS NULL AND (page.content !~ '\S' OR vector_dims(embedding) <> :dimensions::int)
), marked AS (
    UPDATE completions_cache AS cached
    SET quarantined_at = now(), quarantine_reason = bad.reason
    FROM bad
    WHERE cached.req_id = bad.req_id AND cached.created_at = bad.created_at
    RETURNING cached.req_id
), gone AS (
    DELETE FROM completion_vectors WHERE req_id IN (SELECT req_id FROM marked)
)
SELECT (SELECT max(req_id) FROM page) AS upto, (SELECT count(*) FROM marked) AS quarantined;

-- name: drop_crowded_vectors(most_per_scope, most)
-- Of each scope that holds too many, those that expire first.
WITH crowded AS (
    SELECT scope, count(*) AS held
    FROM completion_vectors
    GROUP BY scope
    HAVING count(*) > :most_per_scope::bigint
), excess AS (
    SELECT first_to_go.req_id
    FROM crowded
    CROSS JOIN LATERAL (
        SELECT req_id
        FROM completion_vectors
        WHERE scope = crowded.scope
        ORDER BY expires_at
        LIMIT crowded.held - :most_per_scope::bigint
    ) AS first_to_go
    LIMIT :most
)
DELETE FROM completion_vectors
WHERE req_id IN (SELECT req_id FROM excess)
RETURNING req_id;

-- name: drop_excess_answers(most_held, most)
-- Those that expire first. Their vectors go with them.
DELETE FROM completions_cache
WHERE req_id IN (
    SELECT req_id
    FROM completions_cache
    ORDER BY expires_at
    LIMIT least(:most::bigint, greatest(0, (SELECT count(*) FROM completions_cache) - :most_held::bigint))
)
RETURNING req_id;

-- name: large_scopes(least, most)
-- The largest first.
SELECT scope, count(*) AS held
FROM completion_vectors
GROUP BY scope
HAVING count(*) >= :least::bigint
ORDER BY held DESC
LIMIT :most;

-- name: hnsw_indexes()
-- One that is not valid is left of a build that broke off.
SELECT relname AS name, indisvalid AS valid
FROM pg_index
JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'completion_vectors'::regclass AND starts_with(relname, 'completion_vectors_hnsw_');

-- name: lock_hnsw_indexes()$
-- Until the session ends or unlocks it. False when another session is at it.
SELECT pg_try_advisory_lock(hashtext('completion_vectors_hnsw'));

-- name: unlock_hnsw_indexes()$
SELECT pg_advisory_unlock(hashtext('completion_vectors_hnsw'));
