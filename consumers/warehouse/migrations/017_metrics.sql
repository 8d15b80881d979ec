-- Answers are scored by the metric of their workload, which may abstain; and what a judge was paid for.

ALTER TABLE evaluations ALTER COLUMN score DROP NOT NULL;   -- null: the metric abstains
ALTER TABLE evaluations ADD COLUMN detail VARCHAR;          -- of the score, for people
ALTER TABLE evaluations ADD COLUMN valid BOOLEAN;           -- the answer has the form that programs read; null: no form is asked for
ALTER TABLE evaluations ADD COLUMN answered VARCHAR;        -- the label that the answer was read as; null: none
ALTER TABLE evaluations ADD COLUMN groups JSON;             -- slices by the approved answer: list of label:…, field:…, tool:…
ALTER TABLE decisions ADD COLUMN metric VARCHAR;            -- by which the answers were scored
ALTER TABLE runs ADD COLUMN judge_tokens BIGINT;            -- that a language model was paid for, to judge answers
