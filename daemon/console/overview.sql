-- What the overview shows of all workloads: as many queries, however many workloads there are.

-- name: rates
-- The last helpful rate of each day, as lists in the order of days; and since when all helpful rates lie below the interval
-- of the last one until the day $week.
WITH helpful AS (
    SELECT workload, created_at, created_at::DATE AS day, value, low, high, n FROM quality
    WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
      AND model = '*' AND metric = 'helpful_rate' AND source = 'user' AND created_at >= $since
), days AS (
    SELECT workload, day, arg_max(value, created_at) AS value, arg_max(low, created_at) AS low,
           arg_max(high, created_at) AS high, arg_max(n, created_at) AS n
    FROM helpful GROUP BY workload, day
), good AS (
    SELECT workload, max(created_at) AS good_at
    FROM helpful JOIN (SELECT workload, arg_max(low, day) AS least FROM days WHERE day <= $week GROUP BY workload) USING (workload)
    WHERE value >= least GROUP BY workload
), fell AS (
    SELECT workload, min(created_at) AS fell_at FROM helpful JOIN good USING (workload) WHERE created_at > good_at GROUP BY workload
), history AS (
    SELECT workload, list(day ORDER BY day) AS days, list(value ORDER BY day) AS "values", list(low ORDER BY day) AS lows,
           list(high ORDER BY day) AS highs, list(n ORDER BY day) AS ns
    FROM days GROUP BY workload
)
SELECT workload, days, "values", lows, highs, ns, fell_at FROM history LEFT JOIN fell USING (workload)

-- name: drift
-- The latest check. What was accepted since, or was compared before another champion came into service, is no drift any
-- more.
SELECT workload, id, created_at, severity, severity_low, severity_high,
       CASE WHEN created_at > coalesce(
           greatest((SELECT max(r.created_at) FROM drift_references r WHERE r.workload = c.workload),
                    (SELECT max(a.created_at) FROM aliases a WHERE a.workload = c.workload AND a.alias = 'champion')),
           TIMESTAMP '1970-01-01'
       ) THEN drifted END AS drifted
FROM drift_checks c
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) = 1

-- name: service
-- The champion, the model before it (has_previous: there is one; NULL: the base model), the rollout under way, and the
-- latest change.
SELECT w.workload, a.version AS champion, a.created_at AS champion_since, b.alias IS NOT NULL AS has_previous,
       b.version AS previous, r.version AS canary, r.share, r.state AS rollout,
       p.event, p.version AS changed, p.created_at AS changed_at, p.reason AS change_reason
FROM (SELECT unnest($workloads::VARCHAR[]) AS workload) w
LEFT JOIN aliases a ON a.workload = w.workload AND a.alias = 'champion'
LEFT JOIN aliases b ON b.workload = w.workload AND b.alias = 'previous'
LEFT JOIN rollouts r ON r.workload = w.workload AND r.ended_at IS NULL
LEFT JOIN (
    FROM promotions QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) = 1
) p ON p.workload = w.workload

-- name: approvals
SELECT workload, id, kind, version, expires_at FROM approvals
WHERE state = 'waiting' AND workload IN (SELECT unnest($workloads::VARCHAR[]))
ORDER BY expires_at

-- name: runs
-- The run under way or in line, else the latest one, with what the gate refused it for.
SELECT workload, id, state, started_at, finished_at, version, error, (
    SELECT any_value(coalesce(
        list_filter(from_json(reasons, '["VARCHAR"]'), lambda reason: starts_with(reason, 'Refused by'))[1],
        reasons ->> '$[0]'
    ))
    FROM decisions WHERE kind = 'gate' AND run_id = runs.id AND NOT outcome
) AS refusal
FROM runs
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
QUALIFY row_number() OVER (
    PARTITION BY workload ORDER BY CASE state WHEN 'running' THEN 0 WHEN 'waiting' THEN 1 ELSE 2 END, started_at DESC
) = 1

-- name: labels
-- Open requests, by what experts answered.
SELECT r.workload, coalesce(w.work, []) AS work, count(*) AS requests
FROM label_requests r
LEFT JOIN (
    SELECT request_id, list({'expert': expert, 'state': state, 'since': since, 'name': name, 'value': value, 'sent': sent}) AS work
    FROM label_work WHERE state = 'answered' GROUP BY request_id
) w ON w.request_id = r.id
WHERE r.answered_at IS NULL AND r.workload IN (SELECT unnest($workloads::VARCHAR[]))
GROUP BY ALL

-- name: blind
SELECT workload, monitor, found, needed, what FROM blindness
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
ORDER BY monitor

-- name: money
SELECT workload, sum(CASE WHEN kind = 'gain' THEN amount ELSE -amount END) AS earned FROM ledger
WHERE created_at >= $month AND workload IN (SELECT unnest($workloads::VARCHAR[]))
GROUP BY workload

-- name: answers
SELECT workload, sum(answers) AS answers FROM answer_minutes
WHERE minute >= $day AND NOT demonstration AND workload IN (SELECT unnest($workloads::VARCHAR[]))
GROUP BY workload

-- name: pauses
SELECT workload, actor, reason FROM pauses WHERE ended_at IS NULL
