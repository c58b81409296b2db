-- HNSW indexes of completion_vectors, one per huge scope. They are opt-in (setting cache_hnsw_from), come and go with the
-- size of scopes, and cannot be built in a transaction; so they are no migration.
--
-- Each holds the rows of one scope only (its predicate). One index over all would find the nearest of all scopes and then
-- throw away those of others: with prompts that many scopes share, that is nearly all of them.

-- name: create_index#
-- Vectors of another length are not in it, and can still be written.
CREATE INDEX CONCURRENTLY {name} ON completion_vectors
USING hnsw ((embedding::halfvec({dimensions})) halfvec_ip_ops)
WHERE scope = '{scope}' AND vector_dims(embedding) = {dimensions};

-- name: drop_index#
DROP INDEX CONCURRENTLY IF EXISTS {name};

-- name: allow_long_statements#
-- For the session, until forbid_long_statements: a build takes minutes. One process builds it: more need as much shared
-- memory as work memory, which containers often lack.
SET statement_timeout = '2h';
SET lock_timeout = '2h';
SET maintenance_work_mem = '256MB';
SET max_parallel_maintenance_workers = 0;

-- name: forbid_long_statements#
RESET statement_timeout;
RESET lock_timeout;
RESET maintenance_work_mem;
RESET max_parallel_maintenance_workers;
