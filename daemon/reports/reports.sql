-- name: answers
-- Answers of each day in the warehouse.
SELECT timestamp::DATE AS day, count(*) AS answers FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
GROUP BY day ORDER BY day

-- name: archived
-- Whether answers of the period may have been archived.
SELECT count(*) > 0 AS some FROM archives WHERE table_name = 'interactions' AND last_received_at >= $start

-- name: as_of
SELECT
    (SELECT max(created_at) FROM quality WHERE workload = $workload AND created_at >= $start AND created_at < $end) AS measured_at,
    (SELECT booked_at FROM ledger_position) AS booked_at

-- name: figures
-- The last measurement of each day, of all models together, except figures from votes and the window itself.
SELECT created_at::DATE AS day, metric, source, arg_max(value, created_at) AS value, arg_max(low, created_at) AS low,
       arg_max(high, created_at) AS high, arg_max(n, created_at) AS n
FROM quality
WHERE workload = $workload AND model = '*' AND created_at >= $start AND created_at < $end AND metric <> 'window_seconds'
  AND NOT (metric IN ('helpful_rate', 'hallucination_rate') AND source IN ('user', 'expert', 'judge', 'app'))
GROUP BY ALL ORDER BY ALL

-- name: votes
-- Votes of each day, and of all days (part is empty), for `rates.votes.read_votes`.
CREATE OR REPLACE TEMP TABLE arm_votes AS
SELECT name || '_rate' AS name, source, unnest(['', answered_at::DATE::VARCHAR]) AS part, false AS after, unit, 0 AS block,
       value AS yes
FROM comparable_votes

-- name: money
-- By the day on which what was booked began, whenever it was booked. Entries of the first releases have no such day.
SELECT coalesce(period_start, created_at)::DATE AS day, kind, item, sum(amount) AS amount FROM ledger
WHERE workload = $workload AND coalesce(period_start, created_at) >= $start AND coalesce(period_start, created_at) < $end
    AND abs(amount) < 1e150
GROUP BY ALL ORDER BY ALL

-- name: promotions
SELECT created_at, event, version, previous_version, actor, reason FROM promotions
WHERE workload = $workload AND created_at >= $start AND created_at < $end
ORDER BY created_at

-- name: approvals
-- Decided requests.
SELECT decided_at, version, state, actor, reason, kind FROM approvals
WHERE workload = $workload AND decided_at >= $start AND decided_at < $end
ORDER BY decided_at

-- name: runs
-- Runs that were started: a run that was cancelled in the queue has no attempt.
SELECT state, count(*) AS runs, sum(coalesce(train_seconds, 0) + coalesce(evaluate_seconds, 0)) AS seconds FROM runs
WHERE workload = $workload AND started_at >= $start AND started_at < $end
    AND state <> 'waiting' AND NOT (state = 'cancelled' AND coalesce(attempts, 1) = 0)
GROUP BY state ORDER BY state

-- name: drift
-- Hours with a check, and hours in which a check found drift. Of older checks without drift, only the last of an hour is
-- stored.
SELECT created_at::DATE AS day, max(severity) AS severity, count(DISTINCT date_trunc('hour', created_at)) AS checks,
       count(DISTINCT date_trunc('hour', created_at)) FILTER (drifted) AS drifted
FROM drift_checks
WHERE workload = $workload AND drifted IS NOT NULL AND created_at >= $start AND created_at < $end
GROUP BY day ORDER BY day

-- name: corrections
SELECT count(DISTINCT interaction_id) AS corrections FROM judgements
WHERE workload = $workload AND name = 'correction' AND timestamp >= $start AND timestamp < $end

-- name: latest_dataset
SELECT version FROM datasets WHERE workload = $workload AND removed_at IS NULL ORDER BY created_at DESC LIMIT 1
