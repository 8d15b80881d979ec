-- Severity is an estimate with an interval, a check may be blind, and a person may accept what is asked now as usual.

ALTER TABLE drift_checks ADD COLUMN severity_low DOUBLE;    -- lower end of its 95% interval
ALTER TABLE drift_checks ADD COLUMN severity_high DOUBLE;   -- upper end of its 95% interval
ALTER TABLE drift_checks ADD COLUMN missing BIGINT;         -- conversations that the windows lack; null: none was missing

-- A current window that an operator made the reference.
CREATE TABLE drift_references (
    workload   VARCHAR   NOT NULL,
    created_at TIMESTAMP NOT NULL,                          -- when it was accepted: the end of that window
    start      TIMESTAMP NOT NULL,                          -- of that window
    actor      VARCHAR   NOT NULL,                          -- who accepted it
    reason     VARCHAR   NOT NULL
);
