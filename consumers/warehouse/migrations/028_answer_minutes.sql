-- How many answers each minute has, so that what asks when traffic began, or which workloads there are, reads no event.
-- `consumers/warehouse/answer_minutes.py` has the rows follow those of interactions.

CREATE TABLE answer_minutes (
    workload      VARCHAR   NOT NULL,
    demonstration BOOLEAN   NOT NULL,                   -- they are nobody's traffic
    minute        TIMESTAMP NOT NULL,                   -- its beginning
    answers       BIGINT    NOT NULL,
    first_at      TIMESTAMP NOT NULL                    -- time of the first one
);

-- What is stored already comes with the first look.
CREATE TABLE answer_minutes_position (
    last_batch BIGINT NOT NULL                          -- what this transaction and those before it stored is counted
);
INSERT INTO answer_minutes_position VALUES (-1);
