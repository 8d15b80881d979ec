-- The latest decision about accounts is not the one with the latest time where a clock was set back.
ALTER TABLE rating_periods DROP COLUMN decided_at;
ALTER TABLE rating_periods ADD COLUMN decisions VARCHAR;  -- fingerprint of the decisions about accounts that were known
