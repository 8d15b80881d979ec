-- name: unread
SELECT file, table_name, regexp_extract(file, 'day=([0-9-]+)/', 1)::DATE AS day FROM archives WHERE workloads IS NULL

-- name: record_workloads
UPDATE archives SET workloads = $workloads WHERE file = $file

-- name: files
-- Feedback before its interactions, by which its workload is found.
SELECT file, table_name, rows, workloads, regexp_extract(file, 'day=([0-9-]+)/', 1)::DATE AS day
FROM archives
WHERE workloads IS NOT NULL
ORDER BY day, table_name = 'interactions', file

-- name: of_interactions
SELECT workload, row FROM read_parquet($file, hive_partitioning = false) AS row

-- name: of_feedback
-- Feedback lies under the day of its interaction. Otherwise the interaction is unknown.
SELECT coalesce(answered.workload, '') AS workload, row
FROM read_parquet($file, hive_partitioning = false) AS row
LEFT JOIN (
    SELECT id, any_value(workload) AS workload FROM read_parquet($interactions::VARCHAR[], hive_partitioning = false) GROUP BY id
) AS answered ON answered.id = row.interaction_id

-- name: of_feedback_alone
SELECT '' AS workload, row FROM read_parquet($file, hive_partitioning = false) AS row

-- name: expired_letters
DELETE FROM dead_letters WHERE received_at < $before
