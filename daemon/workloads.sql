-- name: known
-- One whose events have all been archived is still known by its model.
SELECT workload FROM answer_minutes UNION SELECT workload FROM aliases ORDER BY workload

-- name: busiest
SELECT workload FROM answer_minutes WHERE minute >= $since
GROUP BY workload ORDER BY sum(answers) DESC, workload LIMIT $most

-- name: answered
-- Whether it was asked since then.
SELECT 1 AS found FROM answer_minutes
WHERE workload = $workload AND NOT demonstration AND minute >= date_trunc('minute', $since::TIMESTAMP) LIMIT 1
