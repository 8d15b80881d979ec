-- Values are compared in place of grounding rules, what a detector or a judge finds is kept, and only labels make a rate of
-- alarms.

ALTER TABLE groundings ADD COLUMN method VARCHAR;  -- values; null: rules of older versions, whose findings count no more

CREATE TABLE detections (
    scorer         VARCHAR   NOT NULL,  -- nli (quality.detector) or llm (quality.judge_url)
    interaction_id VARCHAR   NOT NULL,
    workload       VARCHAR   NOT NULL,
    model          VARCHAR   NOT NULL,  -- folder of the detector, or name of the judge's model
    created_at     TIMESTAMP NOT NULL,
    score          DOUBLE    NOT NULL,  -- how well the passages support the answer, 0 to 1
    alarm          BOOLEAN   NOT NULL   -- it counts as invented
);

-- The answers with words and passages that were looked at, and whether values, detector or judge alarm.
CREATE VIEW grounding_strata AS
SELECT g.workload, g.interaction_id, coalesce(g.alarm, false) OR coalesce(d.alarm, false) AS alarm
FROM groundings g
LEFT JOIN (SELECT workload, interaction_id, bool_or(alarm) AS alarm FROM detections GROUP BY ALL) d
    USING (workload, interaction_id)
WHERE g.method = 'values' AND (g.abstained IS NULL OR g.abstained NOT IN ('no_words', 'no_context'));

-- Of calibration: whether the answer was drawn from the alarms. Null: it was drawn by the rules, and calibrates nothing.
ALTER TABLE label_requests ADD COLUMN alarm BOOLEAN;

-- Until labels calibrate them, verdicts of models are alarms.
UPDATE quality SET metric = 'alarm_rate' WHERE metric = 'hallucination_rate' AND source IN ('llm', 'nli');
