-- Search where huge scopes have an HNSW index of their own (index.sql). {dimensions} is the length of the vector asked for:
-- an index needs a fixed one, and the planner takes the index only for the very expression that it is built on.

-- name: prepare_search()^
-- For this transaction. Without strict_order the index gives its ef_search nearest and no more: where those are expired,
-- quarantined or without their question, a search finds nothing, however many good rows come next.
SELECT set_config('hnsw.ef_search', '100', true), set_config('hnsw.iterative_scan', 'strict_order', true);

-- name: nearest_answers(scope, embedding, threshold)
-- As in queries/answers.sql but for the order, which an index may serve, and the threshold, which is asked of the three only:
-- within, an index would be read on and on for three that reach it. A scope without an index is read through the B-tree
-- and compared exactly, because an index of another scope cannot serve it: its predicate does not hold.
SELECT cached.req_id, cached.trace_id, cached.answer, cached.created_at, near.question, -near.distance AS similarity
FROM (
    SELECT req_id, question, embedding::halfvec({dimensions}) <#> :embedding::halfvec({dimensions}) AS distance
    FROM completion_vectors
    WHERE scope = :scope AND expires_at > now() AND question IS NOT NULL AND vector_dims(embedding) = {dimensions}
    ORDER BY embedding::halfvec({dimensions}) <#> :embedding::halfvec({dimensions})
    LIMIT 3
) AS near
JOIN completions_cache AS cached USING (req_id)
WHERE cached.expires_at > now() AND cached.quarantined_at IS NULL
    AND -near.distance >= greatest(:threshold::float8, (SELECT least_similarity FROM scope_trust WHERE scope = :scope))
ORDER BY near.distance;
