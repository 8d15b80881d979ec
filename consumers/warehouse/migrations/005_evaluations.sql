-- What kind of question a row is, and what is measured of an answer beside its score.

ALTER TABLE evaluations ADD COLUMN topic VARCHAR;
ALTER TABLE evaluations ADD COLUMN origin VARCHAR;          -- dataset in whose holdout a regression row first stood
ALTER TABLE evaluations ADD COLUMN language VARCHAR;        -- ISO 639-1; null: too short to tell
ALTER TABLE evaluations ADD COLUMN turns INTEGER;           -- questions in the conversation
ALTER TABLE evaluations ADD COLUMN with_context BOOLEAN;
ALTER TABLE evaluations ADD COLUMN grounded DOUBLE;         -- share of its values that context or question hold
ALTER TABLE evaluations ADD COLUMN consistency DOUBLE;      -- of tone and format with the approved answer, 0 to 1
ALTER TABLE evaluations ADD COLUMN refused BOOLEAN;
ALTER TABLE evaluations ADD COLUMN length_ratio DOUBLE;     -- words over those of the approved answer
ALTER TABLE evaluations ADD COLUMN verdict VARCHAR;         -- of the LLM judge on the candidate: win, tie or loss
