-- What production answered stands beside what the models answered, as the model `logged`. Its loss, tokens and time are
-- not known.

ALTER TABLE evaluations ALTER COLUMN loss DROP NOT NULL;
ALTER TABLE evaluations ALTER COLUMN latency_seconds DROP NOT NULL;
ALTER TABLE evaluations ADD COLUMN output_tokens INTEGER;   -- of the answer
ALTER TABLE evaluations ADD COLUMN kind VARCHAR;            -- of the row: correction, or accepted (the logged answer was good)
