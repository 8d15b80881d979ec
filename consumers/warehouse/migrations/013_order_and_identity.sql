-- Rows have a place in the warehouse's own order, offsets name the topic that they are of, and dead letters who sent them.

ALTER TABLE interactions ADD COLUMN batch BIGINT;           -- number of the transaction that stored it; null: before 0.2.0
ALTER TABLE feedback ADD COLUMN batch BIGINT;               -- number of the transaction that stored it; null: before 0.2.0

-- A view has the columns that its table had when it was made.
CREATE OR REPLACE VIEW traffic AS SELECT * EXCLUDE (batch) FROM interactions WHERE model <> 'demonstration';

-- The number of the last transaction that stored events. Each one adds 1, so the order of numbers is that of commits.
CREATE TABLE batches (
    last BIGINT NOT NULL
);
INSERT INTO batches VALUES (1);

-- What was stored and not booked comes next.
UPDATE interactions SET batch = 1 FROM (
    SELECT interactions.rowid AS row FROM interactions LEFT JOIN ledger_progress USING (topic, partition)
    WHERE "offset" >= coalesce(next_offset, 0) AND NOT starts_with(topic, 'import:')
) AS unbooked
WHERE interactions.rowid = unbooked.row;

UPDATE feedback SET batch = 1 FROM (
    SELECT feedback.rowid AS row FROM feedback LEFT JOIN ledger_progress USING (topic, partition)
    WHERE "offset" >= coalesce(next_offset, 0) AND NOT starts_with(topic, 'import:')
) AS unbooked
WHERE feedback.rowid = unbooked.row;

-- How far the ledger has booked: one row, in the place of ledger_progress, which is not written any more.
CREATE TABLE ledger_position (
    last_batch BIGINT NOT NULL,                             -- this one and all before it are booked
    booked_at  TIMESTAMP                                    -- null: nothing was booked yet
);
INSERT INTO ledger_position SELECT 0, max(booked_at) FROM ledger_progress;

ALTER TABLE offsets ADD COLUMN cluster_id VARCHAR;          -- of Kafka; null: not known, or a file
ALTER TABLE offsets ADD COLUMN topic_id VARCHAR;            -- of Kafka: another one is another topic of that name; null: not known

ALTER TABLE dead_letters ADD COLUMN workload VARCHAR;       -- the one that it names, if it does

-- When an operator had ingestion go on after too many dead letters, and when it had read what waited then.
CREATE TABLE ingest_resumptions (
    resumed_at   TIMESTAMP NOT NULL,
    caught_up_at TIMESTAMP                                  -- null: not yet, and no number of dead letters stops it
);
