-- A run that waits is a row, too, so that a restart keeps it. A pause is kept with who asked for it, and why.

ALTER TABLE runs ADD COLUMN attempts INTEGER;     -- how often it was begun and neither ended nor stopped; null: not counted
ALTER TABLE runs ADD COLUMN at_any_hour BOOLEAN;  -- it does not wait for schedule.training_hours; null: it does

CREATE TABLE pauses (
    workload   VARCHAR,                           -- null: all workloads
    created_at TIMESTAMP NOT NULL,
    actor      VARCHAR   NOT NULL,
    reason     VARCHAR   NOT NULL,
    ended_at   TIMESTAMP,                         -- null: in force
    ended_by   VARCHAR
);
