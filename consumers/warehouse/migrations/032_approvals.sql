-- What the gate passed may have to wait until a person approves it.

CREATE TABLE approvals (
    id           VARCHAR   NOT NULL,
    workload     VARCHAR   NOT NULL,
    version      VARCHAR   NOT NULL,    -- that the gate passed
    champion     VARCHAR,               -- the version that it was compared with; null: the base model
    run_id       VARCHAR   NOT NULL,
    requested_at TIMESTAMP NOT NULL,
    expires_at   TIMESTAMP NOT NULL,    -- nobody can approve it from then on
    state        VARCHAR   NOT NULL,    -- waiting, approved, refused, expired or superseded
    decided_at   TIMESTAMP,             -- null: it waits
    actor        VARCHAR,               -- who approved or refused it; null: nobody did
    reason       VARCHAR,               -- why it was approved, refused or superseded; null: it waits, or has expired
    announced    BOOLEAN   NOT NULL     -- the message of its state is on the model-events topic
);
