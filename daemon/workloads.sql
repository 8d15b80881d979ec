-- name: known
-- One whose events have all been archived is still known by its model.
SELECT workload FROM answer_minutes UNION SELECT workload FROM aliases ORDER BY workload

-- name: busiest
SELECT workload FROM answer_minutes WHERE minute >= $since
GROUP BY workload ORDER BY sum(answers) DESC, workload LIMIT $most
