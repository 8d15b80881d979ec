-- Votes and corrections beside the answers that they are about, so that nothing joins all feedback with all interactions
-- each minute. `consumers/warehouse/judgements.py` has the rows follow those of feedback and interactions.

CREATE TABLE judgements (
    workload           VARCHAR   NOT NULL,
    interaction_id     VARCHAR   NOT NULL,
    answered_at        TIMESTAMP NOT NULL,              -- time of the interaction
    answer_received_at TIMESTAMP NOT NULL,              -- when the interaction was received
    demonstration      BOOLEAN   NOT NULL,              -- it is nobody's traffic
    imported           BOOLEAN   NOT NULL,              -- the interaction came from a file
    feedback_id        VARCHAR   NOT NULL,
    name               VARCHAR   NOT NULL,              -- helpful or hallucination, as in the view votes; or correction
    value              BOOLEAN,                         -- null: of a correction
    source             VARCHAR   NOT NULL,              -- user, expert, judge or app
    user_id            VARCHAR,                         -- keyed hash of who judged
    timestamp          TIMESTAMP NOT NULL,              -- time of the feedback
    received_at        TIMESTAMP NOT NULL               -- when the later of both was received
);

-- What is stored already comes with the first look.
CREATE TABLE judgements_position (
    last_batch BIGINT NOT NULL                          -- what this transaction and those before it stored is in judgements
);
INSERT INTO judgements_position VALUES (-1);

CREATE OR REPLACE VIEW votes AS
SELECT id, timestamp, interaction_id, name, value::VARCHAR = 'true' AS value, source, user_id, received_at
FROM feedback
WHERE name IN ('helpful', 'hallucination') AND value::VARCHAR IN ('true', 'false')
UNION ALL
SELECT id, timestamp, interaction_id, 'helpful', false, source, user_id, received_at
FROM feedback AS corrections
WHERE name = 'correction' AND NOT EXISTS (
    FROM feedback
    WHERE name = 'helpful' AND value::VARCHAR IN ('true', 'false')
      AND interaction_id = corrections.interaction_id AND source = corrections.source
      AND user_id IS NOT DISTINCT FROM corrections.user_id
);
