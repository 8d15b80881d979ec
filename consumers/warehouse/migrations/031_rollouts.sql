-- A version goes into service step by step: shares of the traffic, with each decision about them.

ALTER TABLE promotions ADD COLUMN share DOUBLE;         -- of the traffic that the version answers from then on, previous_version answers the rest; null: all
ALTER TABLE promotions ADD COLUMN experiment VARCHAR;   -- the row of rollouts; null: it was changed at once

CREATE TABLE rollouts (
    id               VARCHAR   NOT NULL,                -- the experiment: what conversations are assigned by
    workload         VARCHAR   NOT NULL,
    version          VARCHAR   NOT NULL,                -- that goes into service
    previous_version VARCHAR,                           -- that answers the rest; null: the base model
    created_at       TIMESTAMP NOT NULL,
    share            DOUBLE    NOT NULL,                -- of the traffic, that the version answers
    step_since       TIMESTAMP NOT NULL,                -- since when it is this share
    state            VARCHAR   NOT NULL,                -- canary, holdback, done, rolled_back or replaced
    ended_at         TIMESTAMP                          -- null: the traffic is split
);

CREATE TABLE rollout_checks (
    id               VARCHAR   NOT NULL,
    created_at       TIMESTAMP NOT NULL,
    workload         VARCHAR   NOT NULL,
    experiment       VARCHAR   NOT NULL,                -- the row of rollouts
    version          VARCHAR   NOT NULL,
    previous_version VARCHAR,                           -- null: the base model
    share            DOUBLE    NOT NULL,                -- of the traffic, that the canary answers
    step_since       TIMESTAMP NOT NULL,
    answers          BIGINT    NOT NULL,                -- of the canary in this step
    verdict          VARCHAR   NOT NULL,                -- advance, hold or roll_back
    comparisons      JSON      NOT NULL,                -- list of {metric, source, bad_before, n_before, bad_after, n_after, worse, as_good}
    reasons          JSON      NOT NULL                 -- list of sentences
);
