-- name: pauses
SELECT workload, created_at, actor, reason FROM pauses WHERE ended_at IS NULL ORDER BY workload NULLS FIRST

-- name: end_pause
UPDATE pauses SET ended_at = $now, ended_by = $actor
WHERE ended_at IS NULL AND workload IS NOT DISTINCT FROM $workload
