-- The text that was asked, beside its vector: the guards compare it with what is asked now.
--
-- Null in rows written before; those are found by meaning no more, and their answers still exactly.

ALTER TABLE completion_vectors ADD COLUMN question text;
