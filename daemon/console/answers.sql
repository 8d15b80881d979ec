-- name: answers
-- Answers that match all filters, the newest first; null: any. Of text, what was asked or answered holds it.
SELECT i.id, i.timestamp, i.workload, i.model, i.user_id, i.conversation_id, i.response, i.latency_seconds,
       last_question(i.messages) AS question,
       v.helpful, v.invented, v.corrected, g.alarm
FROM traffic i
LEFT JOIN (
    SELECT interaction_id, arg_max(value, timestamp) FILTER (name = 'helpful') AS helpful,
           arg_max(value, timestamp) FILTER (name = 'hallucination') AS invented, bool_or(name = 'correction') AS corrected
    FROM judgements
    WHERE answered_at >= $since AND answered_at < $until
    GROUP BY interaction_id
) v ON v.interaction_id = i.id
LEFT JOIN grounding_strata g ON g.interaction_id = i.id AND g.workload = i.workload
WHERE i.timestamp >= $since AND i.timestamp < $until
    AND ($workloads IS NULL OR list_contains($workloads::VARCHAR[], i.workload))
    AND ($model IS NULL OR i.model = $model)
    AND ($user IS NULL OR i.user_id = $user)
    AND ($text IS NULL OR contains(lower(i.response), lower($text)) OR contains(lower(i.messages::VARCHAR), lower($text)))
    AND ($segment IS NULL OR json_extract_string(i.attributes, $segment) = $segment_value)
    AND CASE $rating
            WHEN 'helpful' THEN v.helpful
            WHEN 'unhelpful' THEN NOT v.helpful
            WHEN 'invented' THEN v.invented
            WHEN 'corrected' THEN v.corrected
            WHEN 'unrated' THEN v.interaction_id IS NULL
            WHEN 'alarm' THEN g.alarm
            ELSE true
        END
ORDER BY i.timestamp DESC, i.id
LIMIT $limit OFFSET $offset
