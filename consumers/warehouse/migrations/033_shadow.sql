-- Before the first step of a rollout its version may be asked in shadow: beside the champion, and shown to nobody.

CREATE TABLE shadow_answers (                               -- columns as those of feedback, which they come as
    id             VARCHAR   NOT NULL,
    timestamp      TIMESTAMP NOT NULL,
    interaction_id VARCHAR   NOT NULL,                      -- the champion's answer to the same question
    name           VARCHAR   NOT NULL,                      -- shadow_answer
    value          JSON      NOT NULL,                      -- {model, response, tool_calls, finish_reason, input_tokens, output_tokens, latency_seconds}
    source         VARCHAR   NOT NULL,                      -- app
    user_id        VARCHAR,                                 -- keyed hash
    topic          VARCHAR   NOT NULL,
    partition      INTEGER   NOT NULL,
    "offset"       BIGINT    NOT NULL,
    received_at    TIMESTAMP NOT NULL,
    batch          BIGINT                                   -- number of the transaction that stored it
);

CREATE TABLE shadow_scores (
    experiment     VARCHAR   NOT NULL,                      -- the row of rollouts
    interaction_id VARCHAR   NOT NULL,
    conversation   VARCHAR   NOT NULL,                      -- of which this is the one answer that is compared
    scored_at      TIMESTAMP NOT NULL,
    scorer         VARCHAR   NOT NULL,                      -- alike, form, metric or judge; unknown: they differ, and nothing can judge them yet
    champion       DOUBLE,                                  -- 0 to 1; null: unknown
    candidate      DOUBLE,
    tokens         BIGINT    NOT NULL,                      -- that a language model was paid for, to judge them
    booked         BOOLEAN   NOT NULL                       -- the ledger has them
);
