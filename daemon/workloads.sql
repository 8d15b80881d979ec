-- name: known
-- One whose events have all been archived is still known by its model.
SELECT workload FROM answer_minutes UNION SELECT workload FROM aliases ORDER BY workload

-- name: busiest
SELECT workload FROM answer_minutes WHERE minute >= $since
GROUP BY workload ORDER BY sum(answers) DESC, workload LIMIT $most

-- name: latest
-- Any of them: of a workload that is asked, the first that is found.
SELECT timestamp FROM traffic WHERE workload = $workload AND timestamp >= $since LIMIT 1
