-- name: counts
SELECT (SELECT count(*) FROM interactions) AS interactions,
       (SELECT count(*) FROM feedback) AS feedback,
       (SELECT count(*) FROM dead_letters) AS dead_letters

-- name: latest_dead_letters
SELECT received_at, topic, partition, "offset", reason, detail FROM dead_letters ORDER BY received_at DESC LIMIT 5

-- name: booked_at
SELECT booked_at FROM ledger_position

-- name: aliases
SELECT alias, version, created_at FROM aliases WHERE workload = $workload

-- name: quality
-- The figures of the latest measurement: what it could not measure is not known.
SELECT metric, source, model, value, low, high, n, created_at FROM quality
WHERE workload = $workload AND created_at = (SELECT max(created_at) FROM quality WHERE workload = $workload)
ORDER BY metric, source, model

-- name: history
-- One figure over time, at most 120 points, oldest first.
SELECT created_at, value, low, high FROM (
    SELECT created_at, value, low, high, row_number() OVER (ORDER BY created_at DESC) AS age FROM quality
    WHERE workload = $workload AND metric = $metric AND source = $source AND model = '*'
) WHERE age <= 120 ORDER BY created_at

-- name: drift
SELECT id, created_at, drifted, severity, severity_low, severity_high, missing, detail, report, reference_rows, current_rows FROM drift_checks
WHERE workload = $workload ORDER BY created_at DESC LIMIT 5

-- name: drift_reference
-- What was accepted as usual, in force until another champion comes into service.
SELECT created_at, start, actor, reason FROM drift_references
WHERE workload = $workload
  AND created_at >= coalesce(
      (SELECT max(created_at) FROM aliases WHERE workload = $workload AND alias = 'champion'), '-infinity'::TIMESTAMP)
ORDER BY created_at DESC LIMIT 1

-- name: decisions
SELECT created_at, kind, outcome, reasons, run_id, metric, CASE WHEN kind = 'gate' THEN figures END AS figures
FROM decisions
WHERE workload = $workload ORDER BY created_at DESC LIMIT 40

-- name: runs
-- `scores`: mean score on the holdout by base, champion, candidate and logged (what production had answered). The run
-- under way comes first, whatever waits behind it.
SELECT id, kind, state, reasons, started_at, finished_at, version, train_seconds, detail -> '$.scores' AS scores, error FROM runs
WHERE workload = $workload ORDER BY state = 'running' DESC, started_at DESC LIMIT 10

-- name: promotions
SELECT created_at, event, version, previous_version, actor, reason, share, experiment, announced FROM promotions
WHERE workload = $workload ORDER BY created_at DESC LIMIT 20

-- name: quarantine
-- Feedback that the latest dataset sets aside.
SELECT reason, count(*) AS rows, count(DISTINCT user_id) AS accounts FROM quarantine WHERE workload = $workload
GROUP BY reason ORDER BY reason
