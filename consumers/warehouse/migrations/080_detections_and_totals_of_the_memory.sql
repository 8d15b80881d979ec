-- A detector may stop at an answer: the attempt is kept, so that it does not stop there again.
ALTER TABLE detections ALTER COLUMN score DROP NOT NULL;
ALTER TABLE detections ALTER COLUMN alarm DROP NOT NULL;
ALTER TABLE detections ADD COLUMN abstained VARCHAR;  -- why: failed, or interrupted (tried again after all others); null: it was judged

-- Answers for which the memory had an entry: retention of memory_uses takes nothing away.
CREATE TABLE memory_totals (
    workload VARCHAR NOT NULL,
    helped   BIGINT  NOT NULL,  -- with an entry's help
    held_out BIGINT  NOT NULL,  -- without it, to measure its effect
    PRIMARY KEY (workload)
);
INSERT INTO memory_totals
SELECT workload, count(DISTINCT interaction_id) FILTER (NOT held_out), count(DISTINCT interaction_id) FILTER (held_out)
FROM memory_uses
GROUP BY workload;
