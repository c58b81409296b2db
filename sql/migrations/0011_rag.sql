-- What route `rag` needs: chunks found by words too, and a name for what a project knows at a time.
--
-- chunks.words: the lexemes of a chunk, for full text search beside the search by meaning. The configuration is English
-- (stems, stop words); words of other languages, names and part numbers stay as they are written, in lower case.
--
-- corpora.version: another one whenever a project's chunks or documents change, in the same transaction. It is part of
-- the question on route rag (req_id and scope), so that an answer from an older corpus is never found again. It is an
-- uuid, not a number: a database put back to an earlier day must not count up to a version it has given before.
--
-- completions_cache.corpus: the version that the answer rests on, null for answers without documents. Those of a project
-- are deleted when its version changes: nothing that was made from a deleted document is kept for reuse.

ALTER TABLE chunks ADD COLUMN words tsvector NOT NULL GENERATED ALWAYS AS (to_tsvector('english', content)) STORED;

CREATE INDEX chunks_words ON chunks USING gin (words);

CREATE TABLE corpora (
    project text PRIMARY KEY REFERENCES projects,
    version uuid NOT NULL
);

ALTER TABLE completions_cache ADD COLUMN corpus uuid;

CREATE INDEX completions_cache_corpus ON completions_cache (project) WHERE corpus IS NOT NULL;

CREATE INDEX documents_newest ON documents (project, created_at, document_id);
