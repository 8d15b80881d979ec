-- name: champions
-- Of each workload whose champion was ever set. Without a version the base model serves.
SELECT workload, version FROM aliases WHERE alias = 'champion'

-- name: provided
SELECT workload, version, provider_model FROM models WHERE provider_model IS NOT NULL
