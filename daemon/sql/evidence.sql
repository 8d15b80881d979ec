-- name: workloads
-- One whose events have all been archived is still known by its model.
SELECT workload FROM interactions UNION SELECT workload FROM aliases ORDER BY workload

-- name: champion
-- When the model in service came into service, and when the dataset was made that it learned from.
SELECT a.version, a.created_at AS promoted_at, d.created_at AS dataset_at
FROM aliases a
LEFT JOIN models m ON m.workload = a.workload AND m.version = a.version
LEFT JOIN datasets d ON d.workload = a.workload AND d.version = m.dataset_version
WHERE a.workload = $workload AND a.alias = 'champion'

-- name: last_run
SELECT started_at, finished_at FROM runs WHERE workload = $workload ORDER BY started_at DESC LIMIT 1

-- name: drift
SELECT drifted FROM drift_checks
WHERE workload = $workload AND created_at > $since
ORDER BY created_at DESC LIMIT $checks

-- name: corrections
-- What was said of an earlier model's answers is learned from, and says nothing of the one in service. A demonstration
-- is about no model.
SELECT count(*) FILTER (f.received_at > $since_dataset) AS to_learn,
       count(*) FILTER (f.received_at > $since_run AND (i.timestamp >= $promoted_at OR i.model = 'demonstration')) AS new
FROM feedback f JOIN interactions i ON i.id = f.interaction_id AND i.workload = $workload
WHERE f.name = 'correction' AND f.received_at > least($since_dataset, $since_run)

-- name: ratings
-- Users' ratings since the promotion: the first ones, and those of the current window, which never overlap.
WITH rated AS (
    SELECT i.timestamp, (f.value ->> '$')::BOOLEAN AS helpful,
           row_number() OVER (ORDER BY i.timestamp DESC, i.id) AS age
    FROM feedback f JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name = 'helpful' AND f.source = 'user' AND i.timestamp >= $promoted_at
), placed AS (
    SELECT helpful, timestamp,
           timestamp > $now - to_seconds($current_seconds) AND ($current_events IS NULL OR age <= $current_events) AS is_current
    FROM rated
)
SELECT count(*) FILTER (is_current) AS now_total,
       count(*) FILTER (is_current AND helpful) AS now_helpful,
       count(*) FILTER (NOT is_current AND timestamp < $promoted_at + to_seconds($reference_seconds)) AS before_total,
       count(*) FILTER (NOT is_current AND helpful AND timestamp < $promoted_at + to_seconds($reference_seconds)) AS before_helpful
FROM placed

-- name: first_event
SELECT min(timestamp) AS timestamp FROM traffic WHERE workload = $workload

-- name: last_decision
SELECT outcome, reasons FROM decisions
WHERE workload = $workload AND kind = 'retrain'
ORDER BY created_at DESC LIMIT 1

-- name: last_check
SELECT max(created_at) AS created_at FROM drift_checks
