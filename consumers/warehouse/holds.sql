-- name: in_force
SELECT * FROM holds
WHERE released_at IS NULL
    AND (workload IS NULL OR $workload::VARCHAR IS NULL OR workload = $workload)
    AND (user_id IS NULL OR $user_id::VARCHAR IS NULL OR user_id = $user_id)
ORDER BY placed_at, id

-- name: listed
SELECT * FROM holds ORDER BY released_at IS NOT NULL, placed_at DESC, id

-- name: release
UPDATE holds SET released_by = $by, released_at = $now, release_reason = $reason WHERE id = $id AND released_at IS NULL
