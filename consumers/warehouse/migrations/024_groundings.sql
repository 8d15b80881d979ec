-- What the grounding rules found in sampled and in labelled answers, so that none is read twice; and label requests that are
-- drawn at random among alarms and among other answers, so that their labels calibrate the rules.

CREATE TABLE groundings (
    interaction_id VARCHAR   NOT NULL,
    workload       VARCHAR   NOT NULL,
    created_at     TIMESTAMP NOT NULL,
    score          DOUBLE,                              -- how well the passages bear the answer out, 0 to 1; null: abstained
    alarm          BOOLEAN,                             -- score < quality.grounding_threshold of then; null: abstained
    abstained      VARCHAR                              -- why: no_words, no_context, language, code, no_values or numbering (it cites numbers that nothing it was given has); null: it was judged
);

ALTER TABLE label_requests ALTER COLUMN score DROP NOT NULL;    -- null: of calibration, it is not known
ALTER TABLE label_requests ADD COLUMN probability DOUBLE;       -- of calibration: chance of each answer of its kind to be drawn
