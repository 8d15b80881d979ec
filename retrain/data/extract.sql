-- What the making of a dataset reads of the warehouse, each query as a table of its name in a file of its own.

-- name: interactions
-- Those that people said something about, as many of the newest as a dataset may be made from, and as many again: votes of
-- accounts that turn out to be distrusted do not count. And of each account that said something a row of its own, with
-- no workload, for when it was first heard of.
WITH told AS (
    SELECT f.interaction_id, f.name = 'correction' AS correction, max(f.timestamp) AS told_at
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
    GROUP BY f.interaction_id, f.name = 'correction'
    QUALIFY row_number() OVER (PARTITION BY f.name = 'correction' ORDER BY max(f.timestamp) DESC, f.interaction_id) <= 2 * $limit
), accounts AS (
    SELECT DISTINCT coalesce(f.user_id, i.user_id) AS user_id
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.id IN (SELECT interaction_id FROM told)
), heard AS (
    SELECT user_id, min(timestamp) AS timestamp
    FROM (SELECT user_id, timestamp FROM interactions UNION ALL SELECT user_id, timestamp FROM feedback)
    WHERE user_id IN (SELECT user_id FROM accounts)
    GROUP BY user_id
)
SELECT
    id, timestamp, workload, model, messages, response, context, conversation_id, user_id, finish_reason, attributes,
    received_at
FROM interactions
WHERE id IN (SELECT interaction_id FROM told)
UNION ALL BY NAME
SELECT user_id, timestamp FROM heard

-- name: feedback
SELECT f.id, f.timestamp, f.interaction_id, f.name, f.value, f.source, f.user_id, f.received_at
FROM feedback f
JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')

-- name: traffic_sample
-- One answer that nobody said anything about of each of some conversations of the last two weeks, all with the same
-- chance: by the hash of their id, so that the same conversations are drawn of the same traffic.
WITH recent AS (
    SELECT id, coalesce(conversation_id, id) AS conversation
    FROM traffic
    WHERE workload = $workload
        AND timestamp > (SELECT max(timestamp) FROM traffic WHERE workload = $workload) - INTERVAL 14 DAYS
        AND id NOT IN (SELECT interaction_id FROM feedback)
), drawn AS (
    SELECT conversation, arg_min(id, md5(id)) AS id
    FROM recent
    GROUP BY conversation
    ORDER BY md5(conversation)
    LIMIT 3 * $traffic_rows
)
SELECT
    i.id AS interaction_id, i.timestamp, i.received_at, i.user_id, i.messages, i.response, i.context,
    i.attributes -> '$.tools' AS tools, i.attributes -> '$.tool_calls' AS calls
FROM interactions i
JOIN drawn ON drawn.id = i.id
ORDER BY md5(drawn.conversation)

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
SELECT workload, model, split, topic, score FROM evaluations WHERE workload = $workload
