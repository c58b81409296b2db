-- name: documents_of_source(project, source)
SELECT source_path, content_hash
FROM documents
WHERE project = :project AND source = :source;

-- name: put_document(project, source, source_path, content, content_hash)^
-- No row comes back when the same content is there already: nothing is written then.
INSERT INTO documents (project, source, source_path, content, content_hash)
VALUES (:project, :source, :source_path, :content, :content_hash)
ON CONFLICT (project, source, source_path) DO UPDATE
SET content = excluded.content, content_hash = excluded.content_hash, updated_at = now()
WHERE documents.content_hash <> excluded.content_hash
RETURNING old.document_id IS NULL AS added;

-- name: remove_documents(project, source, source_paths)
-- Their chunks go with them.
DELETE FROM documents
WHERE project = :project AND source = :source AND source_path = ANY (:source_paths::text[])
RETURNING source_path;

-- name: find_document(project, document_id)^
SELECT document_id, project, source, source_path, content, content_hash
FROM documents
WHERE project = :project AND document_id = :document_id;

-- name: stale_documents(project, made_with, most)
SELECT document_id
FROM documents
WHERE project = :project AND (chunked_hash, chunked_with) IS DISTINCT FROM (content_hash, :made_with::text)
ORDER BY document_id
LIMIT :most;

-- name: lock_document(project, document_id, content_hash)$
-- Null when the document is gone or has another content by now: then chunks of this content come too late.
SELECT document_id
FROM documents
WHERE project = :project AND document_id = :document_id AND content_hash = :content_hash
FOR UPDATE;

-- name: delete_chunks(project, document_id)!
DELETE FROM chunks WHERE project = :project AND document_id = :document_id;

-- name: insert_chunks(project, document_id, ordinal, content, start_char, end_char, tokens, embedding)*!
INSERT INTO chunks (project, document_id, ordinal, content, start_char, end_char, tokens, embedding)
VALUES (:project, :document_id, :ordinal, :content, :start_char, :end_char, :tokens, :embedding);

-- name: mark_chunked(project, document_id, made_with)!
UPDATE documents
SET chunked_hash = content_hash, chunked_with = :made_with::text
WHERE project = :project AND document_id = :document_id;

-- name: audit_documents(project, made_with, dimensions)^
SELECT
    (SELECT count(*) FROM documents WHERE project = :project) AS documents,
    (SELECT count(*) FROM documents
     WHERE project = :project AND (chunked_hash, chunked_with) IS DISTINCT FROM (content_hash, :made_with::text)) AS stale,
    count(*) AS chunks,
    count(*) FILTER (WHERE owner.document_id IS NULL) AS orphans,
    count(*) FILTER (WHERE vector_dims(chunks.embedding) <> :dimensions) AS misfits
FROM chunks
LEFT JOIN documents AS owner USING (project, document_id)
WHERE chunks.project = :project;

-- name: remove_document(project, document_id)$
-- Its chunks go with it. Null when there is none.
DELETE FROM documents
WHERE project = :project AND document_id = :document_id
RETURNING document_id;

-- name: list_documents(project, after, most, made_with)
-- In the order they came; `after` is the last of the page before, or null.
SELECT document_id, source, source_path, octet_length(content) AS bytes, created_at, updated_at,
       (chunked_hash, chunked_with) IS NOT DISTINCT FROM (content_hash, :made_with::text) AS ready
FROM documents
WHERE project = :project
  AND (:after::uuid IS NULL
       OR (created_at, document_id) > (SELECT created_at, document_id FROM documents
                                       WHERE project = :project AND document_id = :after::uuid))
ORDER BY created_at, document_id
LIMIT :most;

-- name: show_document(project, document_id, source, source_path, made_with)^
-- By its id, or by where it came from.
SELECT document_id, source, source_path, octet_length(content) AS bytes, created_at, updated_at,
       (chunked_hash, chunked_with) IS NOT DISTINCT FROM (content_hash, :made_with::text) AS ready
FROM documents
WHERE project = :project
  AND (document_id = :document_id::uuid OR (source = :source::text AND source_path = :source_path::text));

-- name: stale_projects(made_with, most)
-- Projects with documents that wait to be chunked, and what names the set that waits.
SELECT project, count(*) AS documents, md5(string_agg(content_hash, '' ORDER BY document_id)) AS waiting
FROM documents
WHERE (chunked_hash, chunked_with) IS DISTINCT FROM (content_hash, :made_with::text)
GROUP BY project
ORDER BY min(updated_at)
LIMIT :most;

-- name: corpus_version(project)$
SELECT version FROM corpora WHERE project = :project;

-- name: hold_corpus(project)$
-- As above, and no other version may come before this transaction has ended.
SELECT version FROM corpora WHERE project = :project FOR SHARE;

-- name: change_corpus(project)!
INSERT INTO corpora (project, version)
VALUES (:project, uuidv7())
ON CONFLICT (project) DO UPDATE SET version = excluded.version;

-- name: drop_corpus_answers(project)!
-- After change_corpus, so that answers that were being settled from the version before are there and seen.
DELETE FROM completions_cache WHERE project = :project AND corpus IS NOT NULL;

-- name: search_chunks(project, question, embedding, most)
-- The nearest by meaning and the best by words, one row each, with the ranks (from 1) in either list. All of the
-- project's vectors are compared, so none is missed.
-- By words: a chunk needs one lexeme of the question, and those with more come first. plainto_tsquery joins them with
-- `&`, which a whole sentence never meets. `coverage` is the share of them that the chunk has. Counting by ts_delete and
-- ranking by ts_rank, not ts_rank_cd, is what keeps a word that stands in every chunk cheap.
WITH asked AS MATERIALIZED (
    SELECT replace(plainto_tsquery('english', :question)::text, ' & ', ' | ')::tsquery AS query,
           tsvector_to_array(to_tsvector('english', :question)) AS lexemes
), meaning AS MATERIALIZED (
    SELECT document_id, ordinal, row_number() OVER (ORDER BY distance, document_id, ordinal) AS meaning_rank
    FROM (
        SELECT document_id, ordinal, (embedding <#> :embedding::halfvec) + 0 AS distance
        FROM chunks
        WHERE project = :project AND vector_dims(embedding) = vector_dims(:embedding::halfvec)
        ORDER BY distance, document_id, ordinal
        LIMIT :most
    ) AS nearest
), words AS MATERIALIZED (
    SELECT document_id, ordinal, row_number() OVER (ORDER BY shared DESC, rank DESC, document_id, ordinal) AS words_rank
    FROM (
        SELECT document_id, ordinal, ts_rank(words, query, 1) AS rank, length(words) - length(ts_delete(words, lexemes)) AS shared
        FROM chunks CROSS JOIN asked
        WHERE project = :project AND words @@ query
        ORDER BY shared DESC, rank DESC, document_id, ordinal
        LIMIT :most
    ) AS matching
)
SELECT found.document_id, found.ordinal, found.meaning_rank, found.words_rank, documents.source_path, chunks.content, chunks.tokens,
       CASE WHEN vector_dims(chunks.embedding) = vector_dims(:embedding::halfvec)
            THEN -(chunks.embedding <#> :embedding::halfvec) ELSE 0 END AS similarity,
       (length(chunks.words) - length(ts_delete(chunks.words, asked.lexemes)))::float8
           / greatest(1, cardinality(asked.lexemes)) AS coverage
FROM (SELECT * FROM meaning FULL JOIN words USING (document_id, ordinal)) AS found
JOIN chunks ON chunks.project = :project AND chunks.document_id = found.document_id AND chunks.ordinal = found.ordinal
JOIN documents ON documents.project = :project AND documents.document_id = found.document_id
CROSS JOIN asked;
