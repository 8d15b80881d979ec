-- The pairs of a workload's own exam, and the marks of exams.

-- name: pairs
-- The two answers on which an expert's last label states whether both have the same meaning: those of the conflict request
-- that it answers, else the response and the last correction before the label. Both as the arguments of `shown`.
WITH verdicts AS (
    SELECT * FROM feedback
    WHERE name = 'same' AND source = 'expert' AND value::VARCHAR IN ('true', 'false')
    QUALIFY row_number() OVER (PARTITION BY interaction_id ORDER BY timestamp DESC, id DESC) = 1
), corrected AS (
    SELECT v.interaction_id, arg_max(c.value, (c.timestamp, c.id)) AS correction
    FROM verdicts v
    JOIN feedback c ON c.interaction_id = v.interaction_id AND c.name = 'correction' AND c.timestamp <= v.timestamp
    GROUP BY v.interaction_id
), asked AS (
    SELECT
        r.interaction_id,
        {'correction': CASE WHEN a.name = 'correction' THEN a.value END, 'response': i.response,
         'calls': i.attributes -> '$.tool_calls'} AS answer,
        {'correction': CASE WHEN o.name = 'correction' THEN o.value END, 'response': oi.response,
         'calls': oi.attributes -> '$.tool_calls'} AS approved
    FROM label_requests r
    JOIN verdicts v ON v.interaction_id = r.interaction_id
    JOIN feedback a ON a.id = r.first_feedback_id
    JOIN interactions i ON i.id = a.interaction_id
    JOIN feedback o ON o.id = r.second_feedback_id
    JOIN interactions oi ON oi.id = o.interaction_id
    WHERE v.received_at > r.created_at OR v.id IN (
        SELECT md5(concat_ws(' ', w.request_id, w.expert, epoch_us(w.since))) FROM label_work w WHERE w.request_id = r.id
    )
)
SELECT
    i.id, i.attributes ->> '$.language', last_question(i.messages),
    coalesce(q.approved, {'correction': c.correction, 'response': i.response, 'calls': NULL}),
    coalesce(q.answer, {'correction': NULL, 'response': i.response, 'calls': i.attributes -> '$.tool_calls'}),
    v.value::VARCHAR = 'true'
FROM verdicts v
JOIN interactions i ON i.id = v.interaction_id
LEFT JOIN corrected c ON c.interaction_id = v.interaction_id
LEFT JOIN asked q ON q.interaction_id = v.interaction_id
WHERE i.workload = $workload AND (q.approved IS NOT NULL OR c.correction IS NOT NULL)
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
