-- Datasets have no validation rows: an earlier version ended a training by them.
ALTER TABLE datasets DROP COLUMN validation;
