-- name: workloads
SELECT DISTINCT workload FROM runs UNION SELECT DISTINCT workload FROM models UNION SELECT DISTINCT workload FROM datasets
ORDER BY workload

-- name: removable_versions
-- All versions except the newest $keep, versions with an alias or a deployment, versions that wait for approval, and versions
-- that a current run registered or started from.
WITH named AS (
    SELECT version FROM aliases WHERE workload = $workload
    UNION
    SELECT version FROM deployments WHERE workload = $workload
    UNION
    SELECT version FROM approvals WHERE workload = $workload AND state = 'waiting'
    UNION
    SELECT unnest([version, parent_version]) FROM runs WHERE workload = $workload AND state IN ('running', 'interrupted')
), numbered AS (
    SELECT version, path, row_number() OVER (ORDER BY created_at DESC, version) AS age
    FROM models WHERE workload = $workload AND removed_at IS NULL
)
SELECT version, path FROM numbered
WHERE age > $keep AND version NOT IN (SELECT version FROM named WHERE version IS NOT NULL)
ORDER BY age

-- name: removable_datasets
-- All datasets except the newest, that of a current run, those of remaining versions and their ancestors, and those with
-- decisions on their holdout since the dataset of the champion or of the one before it, from which decisions are counted.
WITH RECURSIVE learned AS (
    SELECT version, parent_version, dataset_version FROM models
    WHERE workload = $workload
        AND (removed_at IS NULL OR version IN (
            SELECT parent_version FROM runs WHERE workload = $workload AND state IN ('running', 'interrupted')
        ))
    UNION
    SELECT m.version, m.parent_version, m.dataset_version
    FROM models m JOIN learned ON m.version = learned.parent_version
    WHERE m.workload = $workload
), counted_from AS (
    SELECT CASE WHEN count(*) = count(d.created_at) THEN min(d.created_at) END AS created_at
    FROM aliases a
    LEFT JOIN models m ON m.workload = a.workload AND m.version = a.version
    LEFT JOIN datasets d ON d.workload = a.workload AND d.version = m.dataset_version
    WHERE a.workload = $workload
), needed AS (
    SELECT dataset_version AS version FROM learned
    UNION
    SELECT dataset_version FROM runs WHERE workload = $workload AND state IN ('running', 'interrupted')
    UNION
    SELECT arg_max(version, created_at) FROM datasets WHERE workload = $workload
)
SELECT version, path FROM datasets
WHERE workload = $workload AND removed_at IS NULL AND created_at < (SELECT created_at FROM counted_from)
    AND version NOT IN (SELECT version FROM needed WHERE version IS NOT NULL)
ORDER BY created_at

-- name: reducible_datasets
-- Datasets from before all datasets of remaining versions, newest first, and the oldest of the latter, which is `whole`. None
-- while champion or previous is the base model, because a training that starts from it uses all evidence.
WITH used AS (
    SELECT dataset_version AS version FROM models
    WHERE workload = $workload
        AND (removed_at IS NULL OR version IN (
            SELECT parent_version FROM runs WHERE workload = $workload AND state IN ('running', 'interrupted')
        ))
    UNION
    SELECT dataset_version FROM runs WHERE workload = $workload AND state IN ('running', 'interrupted')
), oldest AS (
    SELECT min(d.created_at) AS created_at FROM datasets d JOIN used ON used.version = d.version
    WHERE d.workload = $workload
)
SELECT version, version IN (FROM used) AS whole FROM datasets
WHERE workload = $workload AND removed_at IS NULL AND created_at <= (SELECT created_at FROM oldest)
    AND NOT EXISTS (FROM aliases WHERE workload = $workload AND version IS NULL)
ORDER BY created_at DESC, version

-- name: reduce_rows
-- Rows of the regression set. If two workloads have the same dataset, the other one may keep it complete.
DELETE FROM dataset_rows
WHERE split = 'regression' AND dataset_version = $version
    AND dataset_version NOT IN (SELECT version FROM datasets WHERE workload <> $workload AND removed_at IS NULL)

-- name: remove_versions
UPDATE models SET removed_at = $now
WHERE workload = $workload AND version IN (SELECT unnest($versions::VARCHAR[]))

-- name: remove_evaluations
WITH removed AS (
    SELECT id FROM runs WHERE workload = $workload AND version IN (SELECT unnest($versions::VARCHAR[]))
)
DELETE FROM evaluations
WHERE run_id IN (FROM removed)
    OR run_id IN (SELECT id FROM decisions WHERE kind = 'evaluation' AND run_id IN (FROM removed))

-- name: remove_datasets
UPDATE datasets SET removed_at = $now
WHERE workload = $workload AND version IN (SELECT unnest($versions::VARCHAR[]))

-- name: remove_rows
-- If two workloads have the same rows, the other one may keep them.
DELETE FROM dataset_rows
WHERE dataset_version IN (SELECT unnest($versions::VARCHAR[]))
    AND dataset_version NOT IN (SELECT version FROM datasets WHERE removed_at IS NULL)

-- name: removed_versions
SELECT version FROM models WHERE workload = $workload AND removed_at IS NOT NULL

-- name: removed_datasets
SELECT version FROM datasets WHERE workload = $workload AND removed_at IS NOT NULL

-- name: ended_runs
SELECT id AS version FROM runs
WHERE workload = $workload AND state NOT IN ('running', 'interrupted') AND finished_at < $before
