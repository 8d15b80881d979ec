-- What of the stored events shows that something is set up wrongly.

-- name: events
SELECT count(*) AS stored, max(received_at) AS last_at, count(*) FILTER (received_at >= $since) AS recent,
       count(*) FILTER (received_at >= $since AND timestamp > received_at + INTERVAL 60 SECOND) AS ahead,
       max(timestamp - received_at) FILTER (received_at >= $since) AS most_ahead
FROM interactions

-- name: unrated
-- Workloads with answers lately and no feedback lately.
WITH rated AS (
    SELECT DISTINCT i.workload FROM feedback f JOIN interactions i ON i.id = f.interaction_id WHERE f.received_at >= $since
)
SELECT workload, count(*) AS answers FROM interactions
WHERE received_at >= $since AND workload NOT IN (FROM rated)
GROUP BY workload
HAVING count(*) >= $enough
ORDER BY answers DESC, workload

-- name: instructions
-- The messages of the newest answers of each workload.
SELECT workload, messages FROM interactions
WHERE received_at >= $since
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY received_at DESC, id) <= $most

-- name: unmatched
-- Feedback of the last days whose answer is not stored; the answer may come a little later.
SELECT count(*) AS feedback, count(*) FILTER (i.id IS NULL) AS unmatched,
       any_value(f.interaction_id) FILTER (i.id IS NULL) AS example
FROM feedback f LEFT JOIN interactions i ON i.id = f.interaction_id
WHERE f.received_at >= $since AND f.received_at < $settled

-- name: dead_letters
SELECT reason, count(*) AS letters, any_value(detail) AS detail FROM dead_letters
WHERE received_at >= $since
GROUP BY reason ORDER BY letters DESC

-- name: future
SELECT count(*) AS letters FROM dead_letters WHERE received_at >= $since AND detail LIKE '%ingest.max_ahead_seconds%'

-- name: replaced
-- Arguments of tool calls, and fields of answers in JSON, whose value is a pseudonym: answers and corrections with each.
WITH texts AS (
    SELECT workload, id, (attributes::JSON -> '$.tool_calls')::VARCHAR AS text FROM interactions WHERE received_at >= $since
    UNION ALL
    SELECT workload, id, response FROM interactions WHERE received_at >= $since AND starts_with(ltrim(response), '{')
    UNION ALL
    SELECT i.workload, f.id, f.value::VARCHAR FROM feedback f JOIN interactions i ON i.id = f.interaction_id
    WHERE f.received_at >= $since AND f.name = 'correction'
), named AS (
    SELECT workload, id, unnest(regexp_extract_all(text, '([\w.\-]+)\\*"\s*:\s*\\*"[0-9a-f]{4}:[0-9a-f]{32}\\*"', 1)) AS key
    FROM texts WHERE text IS NOT NULL
)
SELECT key, list(DISTINCT workload ORDER BY workload) AS workloads, count(DISTINCT id) AS answers
FROM named GROUP BY key ORDER BY answers DESC, key

-- name: exams
-- The latest exam of each workload on its own pairs.
SELECT workload, arg_max(metric, taken_at) AS metric FROM exams WHERE list_contains($workloads, workload) GROUP BY workload
