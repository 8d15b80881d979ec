-- name: offsets
SELECT topic, partition, next_offset FROM offsets ORDER BY ALL

-- name: move_models
UPDATE models SET path = $new || substr(path, length($old) + 1) WHERE starts_with(path, $old || '/')

-- name: move_datasets
UPDATE datasets SET path = $new || substr(path, length($old) + 1) WHERE starts_with(path, $old || '/')

-- name: move_reports
UPDATE drift_checks SET report = $new || substr(report, length($old) + 1) WHERE starts_with(report, $old || '/')

-- name: renew_memory_epoch
UPDATE memory_epoch SET epoch = replace(uuid()::VARCHAR, '-', '')
