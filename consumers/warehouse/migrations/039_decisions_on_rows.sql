-- What each dataset decided about each row of feedback, and what people decided instead.

CREATE TABLE row_states (
    workload          VARCHAR   NOT NULL,
    feedback_id       VARCHAR   NOT NULL,
    interaction_id    VARCHAR   NOT NULL,
    user_id           VARCHAR,                      -- keyed hash of who gave the feedback
    state             VARCHAR   NOT NULL,           -- taught, held_out, waiting, set_aside or overruled
    reason            VARCHAR   NOT NULL,           -- the rule or the person's action; empty: no rule objects
    detail            VARCHAR   NOT NULL,           -- for a person
    quarantined       BOOLEAN   NOT NULL,           -- left out as doubtful: the view quarantine
    other_feedback_id VARCHAR,                      -- of another answer, of which nobody knows whether it means the same or which is right
    dataset_version   VARCHAR   NOT NULL,           -- the dataset that decided
    decided_at        TIMESTAMP NOT NULL
);

INSERT INTO row_states
SELECT workload, feedback_id, interaction_id, user_id, 'set_aside', reason, detail, true, NULL, dataset_version, created_at
FROM quarantine;

DROP TABLE quarantine;

CREATE VIEW quarantine AS
SELECT workload, feedback_id, interaction_id, user_id, reason, detail, dataset_version, decided_at AS created_at
FROM row_states
WHERE quarantined;

CREATE TABLE row_decisions (
    id             VARCHAR   NOT NULL,
    workload       VARCHAR   NOT NULL,
    feedback_id    VARCHAR   NOT NULL,
    interaction_id VARCHAR   NOT NULL,
    user_id        VARCHAR,                         -- keyed hash of who gave the feedback
    accepted       BOOLEAN   NOT NULL,              -- the feedback is a vote: the decision is about the answer that it accepts
    action         VARCHAR   NOT NULL,              -- keep, drop, pin, edit or release
    answer         VARCHAR,                         -- of edit: what is taught instead
    reason         VARCHAR   NOT NULL,
    author         VARCHAR   NOT NULL,              -- who decided
    decided_at     TIMESTAMP NOT NULL,
    superseded_at  TIMESTAMP                        -- when a later decision took its place; null: it is in force
);

CREATE TABLE account_decisions (
    id            VARCHAR   NOT NULL,
    workload      VARCHAR,                          -- null: all workloads
    user_id       VARCHAR   NOT NULL,               -- keyed hash: the account
    action        VARCHAR   NOT NULL,               -- ban, trust or release
    reason        VARCHAR   NOT NULL,
    author        VARCHAR   NOT NULL,               -- who decided
    decided_at    TIMESTAMP NOT NULL,
    superseded_at TIMESTAMP                         -- when a later decision took its place; null: it is in force
);

-- Experts are asked about two answers that differ.
ALTER TABLE label_requests ADD COLUMN first_feedback_id VARCHAR;   -- of conflict: the feedback that states one answer
ALTER TABLE label_requests ADD COLUMN second_feedback_id VARCHAR;  -- and the other one

-- A dataset can wait for approval, too.
ALTER TABLE approvals ADD COLUMN kind VARCHAR DEFAULT 'version';  -- version or dataset: what waits
