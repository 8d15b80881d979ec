-- What a piece of feedback states about the whole answer. True: it approves of it; false: it is against it; null: neither.
CREATE MACRO approves(of_name, of_value) AS CASE
    WHEN of_name = 'helpful' THEN TRY_CAST(of_value AS BOOLEAN)
    WHEN of_name = 'hallucination' AND TRY_CAST(of_value AS BOOLEAN) THEN false
    WHEN of_name = 'rating' AND TRY_CAST(of_value AS DOUBLE) >= 0.8 THEN true
    WHEN of_name = 'rating' AND TRY_CAST(of_value AS DOUBLE) < 0.5 THEN false
END;

-- The answers of the model in service from which labels of calibration are drawn. An answer that experts are asked about for
-- another reason stays: such answers are likely wrong, and without them the sample would look too good.
CREATE VIEW calibration_candidates AS
SELECT s.workload, s.interaction_id, s.alarm
FROM grounding_strata s
JOIN traffic t ON t.id = s.interaction_id AND t.workload = s.workload
LEFT JOIN aliases a ON a.workload = s.workload AND a.alias = 'champion'
WHERE t.timestamp >= coalesce(a.created_at, TIMESTAMP '1970-01-01')
    AND s.interaction_id NOT IN (
        SELECT interaction_id FROM label_requests WHERE workload = s.workload AND reason = 'calibration'
    );

-- Nothing reads them since the uplift is one of conversations.
ALTER TABLE ledger_moments DROP COLUMN interactions_squared;
ALTER TABLE ledger_moments DROP COLUMN gain_interactions;
