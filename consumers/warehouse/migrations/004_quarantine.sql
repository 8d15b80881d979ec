-- What people said and datasets do not believe for now: the latest word of each workload. The feedback itself stays.

CREATE TABLE quarantine (
    workload        VARCHAR   NOT NULL,
    feedback_id     VARCHAR   NOT NULL,
    interaction_id  VARCHAR   NOT NULL,
    user_id         VARCHAR,                        -- keyed hash of who said it
    reason          VARCHAR   NOT NULL,             -- outvoted, contradicts_expert, account, burst or collusion
    detail          VARCHAR   NOT NULL,             -- for a person
    dataset_version VARCHAR   NOT NULL,             -- the dataset that was made without it
    created_at      TIMESTAMP NOT NULL
);
