-- Queries about workloads answer for all of $workloads at once: the status takes as many queries, however many there are.

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

-- name: quality
-- The figures of the latest measurement: what it could not measure is not known.
WITH latest AS (
    SELECT workload, max(created_at) AS created_at FROM quality WHERE list_contains($workloads, workload) GROUP BY workload
)
SELECT workload, metric, source, model, value, low, high, n, created_at
FROM quality JOIN latest USING (workload, created_at)
ORDER BY metric, source, model

-- name: history
-- One figure over time, at most 120 points, oldest first.
SELECT workload, created_at, value, low, high FROM quality
WHERE list_contains($workloads, workload) AND metric = $metric AND source = $source AND model = '*'
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 120
ORDER BY created_at

-- name: drift
SELECT workload, id, created_at, drifted, severity, severity_low, severity_high, missing, detail, report, reference_rows,
       current_rows
FROM drift_checks
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 5
ORDER BY created_at DESC

-- name: drift_reference
-- What was accepted as usual, in force until another champion comes into service.
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
-- `scores`: mean score on the holdout by base, champion, candidate and logged (what production had answered). The run
-- under way comes first, whatever waits behind it.
SELECT workload, id, kind, state, reasons, started_at, finished_at, version, train_seconds, detail -> '$.scores' AS scores,
       error
FROM runs
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY state = 'running' DESC, started_at DESC) <= 10
ORDER BY state = 'running' DESC, started_at DESC

-- name: promotions
SELECT workload, created_at, event, version, previous_version, actor, reason, share, experiment, announced FROM promotions
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= 20
ORDER BY created_at DESC

-- name: quarantine
-- Feedback that the latest dataset sets aside.
SELECT workload, reason, count(*) AS rows, count(DISTINCT user_id) AS accounts FROM quarantine
WHERE list_contains($workloads, workload)
GROUP BY workload, reason ORDER BY reason
