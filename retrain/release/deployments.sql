-- name: of_workload
SELECT version, share, since, served_at FROM deployments WHERE workload = $workload

-- name: all
SELECT d.workload, d.version, d.share, d.since, d.served_at, m.path IS NOT NULL AND m.removed_at IS NULL AS present,
       coalesce((SELECT list(a.alias ORDER BY a.alias) FROM aliases a
                 WHERE a.workload = d.workload AND a.version IS NOT DISTINCT FROM d.version), []) AS aliases
FROM deployments d
LEFT JOIN models m ON m.workload = d.workload AND m.version = d.version
ORDER BY d.workload, d.share DESC, d.since DESC, d.version

-- name: named
SELECT a.version, list(a.alias ORDER BY a.alias) AS aliases, max(a.created_at) AS since
FROM aliases a JOIN models m ON m.workload = a.workload AND m.version = a.version AND m.removed_at IS NULL
WHERE a.workload = $workload
GROUP BY a.version

-- name: drop_workload
DELETE FROM deployments WHERE workload = $workload

-- name: drop
DELETE FROM deployments WHERE workload = $workload AND version = $version AND share = 0 AND since = $since

-- name: served
UPDATE deployments SET served_at = $now
WHERE workload = $workload AND version = $version AND since = $since AND served_at IS NULL

-- name: answered
-- Whether a model answered after a time.
SELECT 1 AS found FROM interactions WHERE workload = $workload AND model = $model AND timestamp > $after LIMIT 1

-- name: known_names
SELECT workload || '@' || version AS name FROM models WHERE workload = $workload

-- name: acknowledged
SELECT model, aliases, acknowledged_at FROM webhook_models WHERE url = $url

-- name: forget_acknowledged
DELETE FROM webhook_models WHERE url = $url AND model = $model
