-- The pairs of a workload's own exam, and the marks of exams.

-- name: pairs
-- Answers with a correction and an expert's label whether both have the same meaning. The last label and correction count.
-- If the expert labelled a conflict request, its two answers are the pair.
WITH verdicts AS (
    SELECT interaction_id, arg_max(value::VARCHAR, (timestamp, id)) AS same
    FROM feedback
    WHERE name = 'same' AND source = 'expert' AND value::VARCHAR IN ('true', 'false')
    GROUP BY interaction_id
), corrections AS (
    SELECT interaction_id, arg_max(value ->> '$', (timestamp, id)) AS approved
    FROM feedback
    WHERE name = 'correction'
    GROUP BY interaction_id
), asked AS (
    SELECT r.interaction_id,
           CASE WHEN a.name = 'correction' THEN a.value ->> '$' ELSE i.response END AS answer,
           CASE WHEN o.name = 'correction' THEN o.value ->> '$' ELSE oi.response END AS approved
    FROM label_requests r
    JOIN feedback a ON a.id = r.first_feedback_id
    JOIN interactions i ON i.id = a.interaction_id
    JOIN feedback o ON o.id = r.second_feedback_id
    JOIN interactions oi ON oi.id = o.interaction_id
    WHERE r.workload = $workload
)
SELECT
    i.id, i.attributes ->> '$.language', last_question(i.messages), coalesce(q.approved, c.approved) AS approved,
    coalesce(q.answer, i.response), v.same = 'true'
FROM verdicts v
JOIN interactions i ON i.id = v.interaction_id
LEFT JOIN corrections c ON c.interaction_id = v.interaction_id
LEFT JOIN asked q ON q.interaction_id = v.interaction_id
WHERE i.workload = $workload AND coalesce(q.approved, c.approved) IS NOT NULL
ORDER BY i.id

-- name: metric
-- The metric of a workload's newest dataset.
SELECT card -> '$.metric' FROM datasets WHERE workload = $workload ORDER BY created_at DESC LIMIT 1

-- name: version
-- The version of the metric that took the newest exam.
SELECT arg_max(version, taken_at) AS version
FROM exams
WHERE workload = $workload AND metric = $metric AND source = $source

-- name: newest
SELECT kind, language, pairs, judged, agreed
FROM exams
WHERE workload = $workload AND metric = $metric AND source = $source
QUALIFY taken_at = max(taken_at) OVER ()
ORDER BY ALL
