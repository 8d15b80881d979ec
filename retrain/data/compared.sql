-- Datasets that can be compared.

-- name: listed
-- The latest datasets of a workload, newest first, and the versions that learned each.
SELECT d.version, d.created_at, d.train, d.holdout, d.replay, d.removed_at,
       list(m.version ORDER BY m.created_at) FILTER (m.version IS NOT NULL) AS models
FROM datasets d LEFT JOIN models m ON m.workload = d.workload AND m.dataset_version = d.version
WHERE d.workload = $workload
GROUP BY ALL
ORDER BY d.created_at DESC, d.version
LIMIT 100

-- name: workloads
-- The workload of each of two datasets.
SELECT version, workload FROM datasets WHERE version IN ($before, $after) ORDER BY workload
