-- name: versions
SELECT workload, version FROM models WHERE removed_at IS NULL ORDER BY created_at;

-- name: datasets
SELECT workload, version FROM datasets WHERE removed_at IS NULL ORDER BY created_at;

-- name: drift_reports
SELECT id FROM drift_checks WHERE report IS NOT NULL ORDER BY created_at;
