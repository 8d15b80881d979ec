-- name: of_workload
SELECT version, share, since, served_at FROM deployments WHERE workload = $workload

-- name: all
SELECT d.workload, d.version, d.share, d.since, d.served_at, m.path IS NOT NULL AND m.removed_at IS NULL AS present,
       (d.workload, d.version) IN (SELECT workload, version FROM erased_versions) AS erased,
       champions.version AS champion, before.workload IS NOT NULL AS has_previous, before.version AS previous,
       coalesce((SELECT list(a.alias ORDER BY a.alias) FROM aliases a
                 WHERE a.workload = d.workload AND a.version IS NOT DISTINCT FROM d.version), []) AS aliases
FROM deployments d
LEFT JOIN models m ON m.workload = d.workload AND m.version = d.version
LEFT JOIN aliases champions ON champions.workload = d.workload AND champions.alias = 'champion'
LEFT JOIN aliases before ON before.workload = d.workload AND before.alias = 'previous'
ORDER BY d.workload, d.share DESC, d.since DESC, d.version

-- name: wanted
-- The versions that serve or are being drained, the largest share first.
WITH named AS (
    SELECT workload, version, list(alias ORDER BY alias) AS aliases FROM aliases GROUP BY ALL
)
SELECT m.*, coalesce(n.aliases, []) AS aliases, d.since
FROM deployments d
JOIN models m ON m.workload = d.workload AND m.version = d.version AND m.removed_at IS NULL
LEFT JOIN named n ON n.workload = d.workload AND n.version = d.version
WHERE d.workload IN (SELECT unnest($workloads::VARCHAR[]))
ORDER BY d.workload, d.share DESC, d.since DESC, d.version

-- name: named
WITH named AS (
    SELECT workload, version, list(alias ORDER BY alias) AS aliases, max(created_at) AS since
    FROM aliases
    WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    GROUP BY ALL
)
SELECT m.*, n.aliases, n.since
FROM named n JOIN models m ON m.workload = n.workload AND m.version = n.version AND m.removed_at IS NULL
ORDER BY n.workload, n.version

-- name: drop_workload
DELETE FROM deployments WHERE workload = $workload

-- name: drop
DELETE FROM deployments WHERE workload = $workload AND version = $version AND share = 0 AND since = $since

-- name: served
UPDATE deployments SET served_at = $now
WHERE workload = $workload AND version = $version AND since = $since AND served_at IS NULL

-- name: answered
-- An answer of a model after a time, if any.
SELECT 1 AS found FROM interactions WHERE workload = $workload AND model = $model AND timestamp > $after LIMIT 1

-- name: known_names
SELECT workload || '@' || version AS name FROM models WHERE workload = $workload

-- name: acknowledged
SELECT model, aliases, acknowledged_at FROM webhook_models WHERE url = $url

-- name: forget_acknowledged
DELETE FROM webhook_models WHERE url = $url AND model = $model
