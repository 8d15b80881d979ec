-- name: known
-- One whose events have all been archived is still known by its model.
SELECT workload FROM answer_minutes UNION SELECT workload FROM aliases ORDER BY workload

-- name: recorded
-- Those with rows that retention removes.
SELECT workload FROM decisions
UNION SELECT workload FROM detections
UNION SELECT workload FROM drift_checks
UNION SELECT workload FROM groundings
UNION SELECT workload FROM label_requests
UNION SELECT workload FROM ledger
UNION SELECT workload FROM ledger_left_out
UNION SELECT workload FROM ledger_moments
UNION SELECT workload FROM memory_entries
UNION SELECT workload FROM memory_statements
UNION SELECT workload FROM memory_uses
UNION SELECT workload FROM quality
UNION SELECT workload FROM rollouts
UNION SELECT workload FROM watch_checks
ORDER BY workload

-- name: busiest
SELECT workload FROM answer_minutes WHERE minute >= $since
GROUP BY workload ORDER BY sum(answers) DESC, workload LIMIT $most

-- name: answered
-- Whether it was asked since then.
SELECT 1 AS found FROM answer_minutes
WHERE workload = $workload AND NOT demonstration AND minute >= date_trunc('minute', $since::TIMESTAMP) LIMIT 1
