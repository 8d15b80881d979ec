-- What votes are grouped by: the conversation and the model of the answer that they are about, and who asked.

ALTER TABLE judgements ADD COLUMN conversation VARCHAR;     -- of the interaction; its id, where it names none
ALTER TABLE judgements ADD COLUMN model VARCHAR;            -- that answered
ALTER TABLE judgements ADD COLUMN asker_id VARCHAR;         -- keyed hash of who asked

UPDATE judgements SET conversation = coalesce(conversation_id, id), model = answer.model, asker_id = answer.user_id
FROM interactions AS answer
WHERE id = interaction_id AND answer.timestamp = answered_at AND answer.received_at = answer_received_at
  AND answer.workload = judgements.workload;

-- Users' ratings of the model in service, counted once a period is over, so that no look reads those of a year.
CREATE TABLE rating_periods (
    workload VARCHAR   NOT NULL,
    since    TIMESTAMP NOT NULL,                            -- when the model came into service: where period 0 begins
    seconds  DOUBLE    NOT NULL,                            -- length of a period
    period   INTEGER   NOT NULL,                            -- its number
    helpful  BIGINT    NOT NULL,                            -- of the total, so many called the answer helpful
    total    BIGINT    NOT NULL                             -- votes
);

-- Monitors that have too few rows to report anything; those that have enough have no row.
CREATE TABLE blindness (
    workload VARCHAR   NOT NULL,
    monitor  VARCHAR   NOT NULL,                            -- quality or policy
    found    BIGINT    NOT NULL,                            -- it has so many
    needed   BIGINT    NOT NULL,                            -- of so many
    what     VARCHAR   NOT NULL,                            -- what is counted, for a person
    since    TIMESTAMP NOT NULL                             -- when it first had too few
);
