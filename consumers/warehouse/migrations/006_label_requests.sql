-- What experts are asked to judge: one row for each request, whatever became of it.

CREATE TABLE label_requests (
    id             VARCHAR   NOT NULL,
    created_at     TIMESTAMP NOT NULL,
    workload       VARCHAR   NOT NULL,
    interaction_id VARCHAR   NOT NULL,              -- asked about once
    reason         VARCHAR   NOT NULL,              -- the weightiest that spoke for it, or calibration
    detail         VARCHAR   NOT NULL,              -- all that spoke for it, for a person
    score          DOUBLE    NOT NULL,              -- how likely the answer is wrong, 0 to 1
    announced      BOOLEAN   NOT NULL,              -- the message is on the label-requests topic
    answered_at    TIMESTAMP,                       -- when an expert's answer was received
    feedback_id    VARCHAR                          -- that answer
);
