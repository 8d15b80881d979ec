-- name: window
-- What is new: the events that were stored, and the pairs of feedback and interaction that were completed, since
-- the last booking. A pair is new when either of the two is: feedback may come hours before its interaction.
-- What was imported from files is history that nobody paid or was paid for here.
CREATE OR REPLACE TEMP TABLE new_interactions AS
SELECT id, workload, cost, input_tokens, output_tokens
FROM interactions LEFT JOIN ledger_progress USING (topic, partition)
WHERE "offset" >= coalesce(next_offset, 0) AND NOT starts_with(topic, 'import:');

CREATE OR REPLACE TEMP TABLE money_feedback AS
SELECT interaction_id, name, value::VARCHAR AS value, "offset" >= coalesce(next_offset, 0) AS is_new
FROM feedback LEFT JOIN ledger_progress USING (topic, partition)
WHERE name IN ('time_saved_seconds', 'escalated') AND NOT starts_with(topic, 'import:');

-- All pairs of the interactions that have a new one: whether an escalation is the first is seen from its elders.
CREATE OR REPLACE TEMP TABLE pairs AS
WITH touched AS (
    SELECT id FROM new_interactions UNION SELECT interaction_id FROM money_feedback WHERE is_new
)
SELECT
    interactions.workload, told.interaction_id, told.name, told.value,
    told.is_new OR interactions."offset" >= coalesce(next_offset, 0) AS is_new
FROM (SELECT * FROM money_feedback WHERE interaction_id IN (SELECT id FROM touched)) told
JOIN interactions ON interactions.id = told.interaction_id
LEFT JOIN ledger_progress USING (topic, partition);

-- name: time_saved
SELECT workload, sum(hours) AS hours, count(*) AS answers
FROM (SELECT workload, try_cast(value AS DOUBLE) / 3600 AS hours FROM pairs WHERE name = 'time_saved_seconds' AND is_new)
WHERE hours > 0 AND isfinite(hours)
GROUP BY workload
ORDER BY workload

-- name: escalations
-- Workloads that tell of escalations at all: of one that never does, nothing is known to be avoided.
WITH telling AS (
    SELECT workload FROM pairs WHERE name = 'escalated'
    UNION
    SELECT workload FROM ledger WHERE item = 'escalations_avoided'
), counted AS (
    SELECT workload, count(*) AS interactions FROM new_interactions GROUP BY workload
), escalated AS (
    -- One escalation for each interaction, whoever told of it and however often.
    SELECT workload, count(*) AS escalations
    FROM (
        SELECT workload, interaction_id FROM pairs WHERE name = 'escalated' AND value = 'true'
        GROUP BY workload, interaction_id HAVING bool_and(is_new)
    )
    GROUP BY workload
)
SELECT workload, coalesce(interactions, 0) AS interactions, coalesce(escalations, 0) AS escalations
FROM telling LEFT JOIN counted USING (workload) LEFT JOIN escalated USING (workload)
WHERE coalesce(interactions, 0) + coalesce(escalations, 0) > 0
ORDER BY workload

-- name: carried
SELECT workload, arg_max((reference->>'carried')::DOUBLE, created_at) AS carried
FROM ledger
WHERE item = 'escalations_avoided'
GROUP BY workload

-- name: inference
SELECT
    workload,
    count(*) FILTER (cost IS NOT NULL) AS priced,
    coalesce(sum(cost), 0.0) AS cost,
    coalesce(sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) FILTER (cost IS NULL), 0)::DOUBLE AS tokens
FROM (SELECT * REPLACE (CASE WHEN isfinite(cost) AND cost >= 0 THEN cost END AS cost) FROM new_interactions)
GROUP BY workload
ORDER BY workload

-- name: training
SELECT id, workload, (coalesce(train_seconds, 0) + coalesce(evaluate_seconds, 0)) / 3600 AS hours
FROM runs
WHERE finished_at IS NOT NULL AND hours > 0
    AND id NOT IN (SELECT reference FROM ledger WHERE item = 'training')
ORDER BY finished_at, id

-- name: since
SELECT coalesce((SELECT max(booked_at) FROM ledger_progress), (SELECT min(received_at) FROM interactions)) AS since

-- name: workloads
SELECT DISTINCT workload FROM interactions ORDER BY workload

-- name: advance
INSERT INTO ledger_progress
SELECT topic, partition, max("offset") + 1, $now
FROM (SELECT topic, partition, "offset" FROM interactions UNION ALL SELECT topic, partition, "offset" FROM feedback)
GROUP BY topic, partition
ON CONFLICT DO UPDATE SET next_offset = greatest(next_offset, excluded.next_offset), booked_at = excluded.booked_at

-- name: summary
SELECT kind, item, unit, sum(quantity) AS quantity, sum(amount) AS amount
FROM ledger
WHERE $workload IS NULL OR workload = $workload
GROUP BY kind, item, unit
ORDER BY kind DESC, item, unit
