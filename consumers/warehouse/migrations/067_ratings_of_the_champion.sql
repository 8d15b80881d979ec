-- Counts had votes on answers of a canary, and votes of accounts that were banned later.
ALTER TABLE rating_periods ADD COLUMN version VARCHAR;          -- whose answers count; null: of an old count
ALTER TABLE rating_periods ADD COLUMN decided_at TIMESTAMP;     -- of the latest decision about accounts that was known
