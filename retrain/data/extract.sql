-- The part of the warehouse that a dataset is built from. Each query becomes a table of its name in the extract.

-- name: interactions
-- Interactions with feedback: of those with corrections, of those called good and of those called bad, twice as many of the
-- newest as a dataset may contain, because votes of distrusted accounts do not count; those that a person keeps, pins or edits
-- are all there. Also a row for each account without a workload, with the time of its first event. An answer of the incumbent
-- is one that the gateway marked, or that a log names by the incumbent's model, such as gpt-4.1-mini-2025-04-14.
WITH rated AS (
    SELECT
        f.interaction_id, f.name = 'correction' AS correction, approves(f.name, f.value) AS good,
        max(f.timestamp) AS rated_at
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
    GROUP BY f.interaction_id, correction, good
    QUALIFY row_number() OVER (PARTITION BY correction, good ORDER BY rated_at DESC, f.interaction_id) <= 2 * $limit
        OR f.interaction_id IN (
            SELECT interaction_id FROM row_decisions
            WHERE workload = $workload AND superseded_at IS NULL AND action IN ('keep', 'pin', 'edit')
        )
), accounts AS (
    SELECT DISTINCT coalesce(f.user_id, i.user_id) AS user_id
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.id IN (SELECT interaction_id FROM rated)
), first_events AS (
    SELECT user_id, min(timestamp) AS timestamp
    FROM (SELECT user_id, timestamp FROM interactions UNION ALL SELECT user_id, timestamp FROM feedback)
    WHERE user_id IN (SELECT user_id FROM accounts)
    GROUP BY user_id
)
SELECT
    id, timestamp, workload, model, messages, response, context, conversation_id, user_id, finish_reason,
    CASE WHEN model = $incumbent OR starts_with(model, $incumbent || '-')
         THEN json_merge_patch(coalesce(attributes, '{}'), json_object('incumbent', model)) ELSE attributes END AS attributes,
    received_at
FROM interactions
WHERE id IN (SELECT interaction_id FROM rated)
UNION ALL BY NAME
SELECT user_id, timestamp FROM first_events

-- name: feedback
SELECT f.id, f.timestamp, f.interaction_id, f.name, f.value, f.source, f.user_id, f.received_at
FROM feedback f
JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')

-- name: traffic_sample
-- One unrated answer from each of a uniform sample of the conversations of the last two weeks. The sample is drawn by the
-- hash of their id, so the same traffic gives the same sample. Without answers that the memory helped: a candidate gets no help.
WITH recent AS (
    SELECT id, coalesce(conversation_id, id) AS conversation
    FROM traffic
    WHERE workload = $workload AND NOT ends_with(model, '@cascade')
        AND timestamp > (SELECT max(timestamp) FROM traffic WHERE workload = $workload) - INTERVAL 14 DAYS
        AND id NOT IN (SELECT interaction_id FROM feedback)
        AND coalesce(json_array_length(attributes, '$.memory.entries'), 0) = 0
), drawn AS (
    SELECT conversation, arg_min(id, md5(id)) AS id
    FROM recent
    GROUP BY conversation
    ORDER BY md5(conversation)
    LIMIT 3 * $traffic_rows
)
SELECT
    i.id AS interaction_id, i.timestamp, i.received_at, i.user_id, i.messages, i.response, i.context,
    i.attributes -> '$.tools' AS tools, question_extras(i.attributes) AS extras, i.attributes -> '$.tool_calls' AS calls, i.conversation_id AS conversation
FROM interactions i
JOIN drawn ON drawn.id = i.id
ORDER BY md5(drawn.conversation)

-- name: recent_questions
-- The question of one answer from each of a uniform sample of the conversations of the last two weeks, rated or not. It
-- begins with the first answer that nobody rated: of the time before, retention may have left rated ones alone.
WITH all_recent AS (
    SELECT id, timestamp, coalesce(conversation_id, id) AS conversation
    FROM traffic
    WHERE workload = $workload AND NOT ends_with(model, '@cascade')
        AND timestamp > (SELECT max(timestamp) FROM traffic WHERE workload = $workload) - INTERVAL 14 DAYS
), recent AS (
    SELECT id, conversation
    FROM all_recent
    WHERE timestamp >= (
        SELECT min(timestamp) FROM all_recent WHERE id NOT IN (SELECT interaction_id FROM feedback)
    )
), drawn AS (
    SELECT conversation, arg_min(id, md5(id)) AS id
    FROM recent
    GROUP BY conversation
    ORDER BY md5(conversation)
    LIMIT 10 * $traffic_rows
)
SELECT
    i.id AS interaction_id, i.timestamp, i.received_at, i.user_id, i.messages, i.response, i.context,
    i.attributes -> '$.tools' AS tools, question_extras(i.attributes) AS extras, i.attributes -> '$.tool_calls' AS calls, i.conversation_id AS conversation
FROM interactions i
JOIN drawn ON drawn.id = i.id

-- name: memory_entries
SELECT id, workload, answer FROM memory_entries WHERE workload = $workload

-- name: row_states
SELECT * FROM row_states WHERE workload = $workload

-- name: row_decisions
SELECT * FROM row_decisions WHERE workload = $workload AND superseded_at IS NULL

-- name: account_decisions
SELECT * FROM account_decisions WHERE (workload = $workload OR workload IS NULL) AND superseded_at IS NULL

-- name: datasets
SELECT * FROM datasets WHERE workload = $workload

-- name: dataset_rows
SELECT r.* FROM dataset_rows r JOIN datasets d ON d.version = r.dataset_version WHERE d.workload = $workload

-- name: runs
SELECT * FROM runs WHERE workload = $workload

-- name: decisions
SELECT * FROM decisions WHERE workload = $workload AND kind = 'gate'

-- name: models
SELECT * FROM models WHERE workload = $workload

-- name: aliases
SELECT * FROM aliases WHERE workload = $workload

-- name: evaluations
-- Evaluations of runs, without later ones for information.
SELECT workload, model, split, topic, score FROM evaluations WHERE workload = $workload AND run_id IN (SELECT id FROM runs)
