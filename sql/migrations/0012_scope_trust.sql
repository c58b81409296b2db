-- scope_trust: what verification found out about the semantic answers of one scope (see 0002 for scopes).
--
-- A refuted answer raises `least_similarity` over its own similarity: a semantic answer of the scope needs at least that
-- from then on, whatever threshold the request names. Confirmations lower the share of answers that are verified; a
-- refutation sets them back. A scope without a row has been neither confirmed nor refuted.

CREATE TABLE scope_trust (
    scope            text        PRIMARY KEY,
    least_similarity float8      NOT NULL DEFAULT 0 CHECK (least_similarity BETWEEN 0 AND 1),
    confirmed        integer     NOT NULL DEFAULT 0,
    refuted          integer     NOT NULL DEFAULT 0,
    updated_at       timestamptz NOT NULL DEFAULT now()
);
