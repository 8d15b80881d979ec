-- name: champions
-- Of each workload whose champion was ever set. Without a version the base model serves.
SELECT a.workload, a.version, m.provider_model
FROM aliases a LEFT JOIN models m ON m.workload = a.workload AND m.version = a.version
WHERE a.alias = 'champion' ORDER BY a.workload
