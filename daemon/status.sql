-- Queries about workloads return the rows of all $workloads, so that the number of queries does not grow with them.

-- name: counts
SELECT (SELECT count(*) FROM interactions) AS interactions,
       (SELECT count(*) FROM feedback) AS feedback,
       (SELECT count(*) FROM dead_letters) AS dead_letters

-- name: latest_dead_letters
SELECT received_at, topic, partition, "offset", reason, detail FROM dead_letters ORDER BY received_at DESC LIMIT 5

-- name: booked_at
SELECT booked_at FROM ledger_position

-- name: aliases
SELECT workload, alias, version FROM aliases WHERE list_contains($workloads, workload)

-- name: history
-- One figure over time, at most 120 points, oldest first.
SELECT workload, created_at, value, low, high FROM quality
WHERE list_contains($workloads, workload) AND metric = $metric AND source = $source AND model = '*'
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 120
ORDER BY created_at

-- name: drift
SELECT workload, id, created_at, drifted, severity, severity_low, severity_high, missing, detail, report, reference_rows,
       current_rows, estimate
FROM drift_checks
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 5
ORDER BY created_at DESC

-- name: drift_reference
-- The accepted reference, in force until the champion changes.
WITH champions AS (
    SELECT workload, max(created_at) AS since FROM aliases WHERE alias = 'champion' GROUP BY workload
)
SELECT workload, created_at, start, actor, reason
FROM drift_references LEFT JOIN champions USING (workload)
WHERE list_contains($workloads, workload) AND created_at >= coalesce(since, '-infinity'::TIMESTAMP)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) = 1

-- name: decisions
SELECT workload, created_at, kind, outcome, reasons, run_id, metric, CASE WHEN kind = 'gate' THEN figures END AS figures
FROM decisions
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 40
ORDER BY created_at DESC

-- name: runs
-- `scores`: mean score on the holdout of base, champion, candidate and logged (production's answers). A run under way
-- comes first.
SELECT workload, id, kind, state, reasons, started_at, finished_at, version, train_seconds, detail -> '$.scores' AS scores,
       error
FROM runs
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY state = 'running' DESC, started_at DESC) <= 10
ORDER BY state = 'running' DESC, started_at DESC

-- name: latest_runs
SELECT workload, id, kind, state, reasons, started_at, finished_at, version, train_seconds, detail -> '$.scores' AS scores,
       error
FROM runs
WHERE $workload IS NULL OR workload = $workload
ORDER BY CASE state WHEN 'running' THEN 0 WHEN 'waiting' THEN 1 WHEN 'interrupted' THEN 1 ELSE 2 END, started_at DESC
LIMIT $most

-- name: versions
-- `passed`: the latest decision of the gate on the run that made the version; null: none yet.
SELECT m.workload, m.version, m.created_at, m.base_model, m.parent_version, m.dataset_version, m.run_id, m.removed_at,
       d.train AS examples, r.detail -> '$.scores' AS scores, g.passed
FROM models m
LEFT JOIN datasets d ON d.workload = m.workload AND d.version = m.dataset_version
LEFT JOIN runs r ON r.id = m.run_id
LEFT JOIN (
    SELECT run_id, arg_max(outcome, created_at) AS passed FROM decisions WHERE kind = 'gate' GROUP BY run_id
) g ON g.run_id = m.run_id
WHERE $workload IS NULL OR m.workload = $workload
ORDER BY m.created_at DESC
LIMIT $most

-- name: promotions
SELECT workload, created_at, event, version, previous_version, actor, reason, share, experiment, announced FROM promotions
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 20
ORDER BY created_at DESC

-- name: quarantine
-- Feedback that the latest dataset set aside.
SELECT workload, reason, count(*) AS rows, count(DISTINCT user_id) AS accounts FROM quarantine
WHERE list_contains($workloads, workload)
GROUP BY workload, reason ORDER BY reason
