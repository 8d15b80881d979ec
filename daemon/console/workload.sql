-- What the page of one workload shows.

-- name: series
-- The last figure of each stretch of $seconds.
SELECT metric, source, time_bucket(to_seconds($seconds::BIGINT), created_at) AS bucket, max(created_at) AS at,
       arg_max({'value': value, 'low': low, 'high': high, 'n': n}, created_at) AS rate
FROM quality
WHERE workload = $workload AND model = '*' AND metric IN ('helpful_rate', 'hallucination_rate')
    AND created_at BETWEEN $start AND $end
GROUP BY metric, source, bucket
ORDER BY bucket

-- name: first
SELECT min(created_at) AS first FROM quality WHERE workload = $workload AND created_at BETWEEN $start AND $end

-- name: promotions
SELECT created_at, event, version, previous_version, actor, reason, share FROM promotions
WHERE workload = $workload AND created_at BETWEEN $start AND $end
ORDER BY created_at DESC
LIMIT 50

-- name: checks
SELECT id, created_at, drifted, severity, severity_low, severity_high, detail, report, features, estimate FROM drift_checks
WHERE workload = $workload AND created_at BETWEEN $start AND $end
ORDER BY created_at DESC
LIMIT 200

-- name: corrections
SELECT time_bucket(to_seconds($seconds::BIGINT), timestamp) AS bucket, count(*) AS corrections FROM judgements
WHERE workload = $workload AND name = 'correction' AND timestamp BETWEEN $start AND $end
GROUP BY bucket
ORDER BY bucket

-- name: memory
-- What the memory did in each stretch of $seconds: entries by what became of them, and answers that they helped.
SELECT time_bucket(to_seconds($seconds::BIGINT), moment) AS bucket,
       count(*) FILTER (event = 'added') AS added,
       count(*) FILTER (event = 'withdrawn') AS withdrawn,
       count(*) FILTER (event = 'retired') AS retired,
       count(*) FILTER (event = 'helped') AS helped
FROM (
    SELECT added_at AS moment, 'added' AS event FROM memory_entries WHERE workload = $workload
    UNION ALL
    SELECT changed_at, state FROM memory_entries WHERE workload = $workload AND state IN ('withdrawn', 'retired')
    UNION ALL
    SELECT answered_at, 'helped' FROM memory_uses WHERE workload = $workload AND NOT held_out
)
WHERE moment BETWEEN $start AND $end
GROUP BY bucket
ORDER BY bucket

-- name: runs
SELECT id, kind, state, reasons, started_at, finished_at, version, train_seconds, dataset_version, error,
       detail -> '$.scores' AS scores
FROM runs
WHERE workload = $workload
ORDER BY state = 'running' DESC, started_at DESC
LIMIT 12

-- name: decisions
-- What the gate decided.
SELECT d.created_at, d.outcome, d.reasons, d.figures, d.run_id, d.metric, r.version, r.parent_version
FROM decisions d LEFT JOIN runs r ON r.id = d.run_id
WHERE d.workload = $workload AND d.kind = 'gate'
ORDER BY d.created_at DESC
LIMIT 5

-- name: policy
-- The latest decision whether to retrain.
SELECT created_at, outcome, reasons FROM decisions
WHERE workload = $workload AND kind = 'retrain'
ORDER BY created_at DESC
LIMIT 1
