-- How a champion that the gate promoted does in service, beside the one before it: one row for each check.

CREATE TABLE watch_checks (
    id               VARCHAR   NOT NULL,
    created_at       TIMESTAMP NOT NULL,
    workload         VARCHAR   NOT NULL,
    promotion_id     VARCHAR   NOT NULL,            -- what is watched
    version          VARCHAR   NOT NULL,
    previous_version VARCHAR,                       -- null: the base model
    since            TIMESTAMP NOT NULL,            -- when the version was promoted
    until            TIMESTAMP NOT NULL,            -- when the watch ends
    verdict          VARCHAR   NOT NULL,            -- keep, roll_back or go_on
    comparisons      JSON      NOT NULL,            -- list of {metric, source, bad_before, n_before, bad_after, n_after, worse, as_good}
    reasons          JSON      NOT NULL             -- list of sentences
);
