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
