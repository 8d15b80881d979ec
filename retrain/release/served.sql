-- name: champions
-- Of each workload whose champion was ever set, with the one before it. Without a version the base model serves.
SELECT champions.workload, champions.version, before.workload IS NOT NULL AS has_previous, before.version AS previous
FROM (SELECT workload, version FROM aliases WHERE alias = 'champion') AS champions
LEFT JOIN (SELECT workload, version FROM aliases WHERE alias = 'previous') AS before USING (workload)

-- name: provided
SELECT workload, version, provider_model FROM models WHERE provider_model IS NOT NULL
