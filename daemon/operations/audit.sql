-- name: latest
SELECT * FROM audit
WHERE ($workload::VARCHAR IS NULL OR workload = $workload) AND ($actor::VARCHAR IS NULL OR actor = $actor)
    AND ($action::VARCHAR IS NULL OR action = $action) AND ($outcome::VARCHAR IS NULL OR outcome = $outcome)
ORDER BY sequence DESC LIMIT $limit

-- name: part
SELECT * FROM audit WHERE sequence > $done ORDER BY sequence LIMIT $part
