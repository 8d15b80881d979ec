-- The helpful rate of all answers, estimated from the votes on a few.

ALTER TABLE drift_checks ADD COLUMN estimate JSON;  -- {rate, low, high, votes, before, segments, moved}; null: too few votes
