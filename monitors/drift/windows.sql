-- name: accepted
SELECT start, created_at FROM drift_references
WHERE workload = $workload AND created_at <= $now
ORDER BY created_at DESC
LIMIT 1

-- name: nth_conversation
-- When the nth conversation began.
SELECT min(timestamp) AS timestamp FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
GROUP BY coalesce(conversation_id, id)
ORDER BY timestamp
LIMIT 1 OFFSET $skip

-- name: nth_latest_conversation
-- The time since which n conversations had an event.
SELECT max(timestamp) AS timestamp FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
GROUP BY coalesce(conversation_id, id)
ORDER BY timestamp DESC
LIMIT 1 OFFSET $skip
