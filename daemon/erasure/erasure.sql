-- name: dataset_paths
SELECT workload, path FROM datasets WHERE removed_at IS NULL ORDER BY path

-- name: deleted_reports
-- The names of deleted files, among them those of reports.
SELECT DISTINCT parse_filename(file ->> 'path', true) AS name
FROM (SELECT unnest(from_json(found -> 'files', '["JSON"]')) AS file FROM erasures WHERE found IS NOT NULL)
WHERE file ->> 'action' = 'delete'
ORDER BY name

-- name: versions
SELECT version FROM models WHERE workload = $workload

-- name: dataset_versions
SELECT version FROM datasets WHERE removed_at IS NULL

-- name: reports
-- Reports of drift checks that may have read erased events.
SELECT report FROM drift_checks
WHERE workload = $workload AND report IS NOT NULL AND created_at >= coalesce($first, created_at)
ORDER BY report

-- name: drift_checks
-- Drift checks whose words and example may be those of erased events.
SELECT id, features FROM drift_checks
WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND created_at >= coalesce($first, created_at)

-- name: blank_drift_check
UPDATE drift_checks SET features = $features, detail = $detail, report = NULL WHERE id = $id

-- name: blank_outputs
-- Generated answers whose question is in no dataset any more, so that nothing shows whether it was an erased one.
UPDATE evaluations SET output = ''
WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND split <> 'general' AND output <> ''
    AND row_id NOT IN (SELECT row_id FROM dataset_rows WHERE dataset_version = evaluations.dataset_version)

-- name: unfinished
SELECT * FROM erasures WHERE state <> 'done' ORDER BY requested_at, id

-- name: waiting
-- The oldest erasure of each state that this daemon has not carried out. `applying`: the leader of the cluster, now or then,
-- has erased the rows, and this daemon has not yet removed them from its files.
SELECT if($follows OR state = 'done', 'applying', state) AS state, min(requested_at) AS since
FROM erasures
WHERE state IN ('rewriting', 'swapping', 'done') AND id NOT IN (SELECT erasure_id FROM erasures_applied)
    OR state <> 'done' AND NOT $follows
GROUP BY ALL

-- name: erasure
SELECT * FROM erasures WHERE id = $id

-- name: erasures
SELECT id, requested_at, requested_by, reason, state, error, done_at FROM erasures ORDER BY requested_at DESC, id LIMIT $limit

-- name: forget_tombstones
DELETE FROM tombstones WHERE erasure_id = $id

-- name: fixed
SELECT 1 FROM tombstones WHERE erasure_id = $id LIMIT 1

-- name: forget_datasets
DELETE FROM erasure_datasets WHERE erasure_id = $id

-- name: put_datasets
-- A repeated stage finds only what was written since.
INSERT INTO erasure_datasets SELECT $id, unnest($datasets::VARCHAR[]), unnest($rows::BIGINT[])
ON CONFLICT DO UPDATE SET rows = greatest(rows, excluded.rows)

-- name: datasets
SELECT dataset_version, rows FROM erasure_datasets WHERE erasure_id = $id

-- name: put_version
INSERT INTO erasure_versions VALUES ($id, $workload, $version, $dataset_version, $rows) ON CONFLICT DO NOTHING

-- name: advance
UPDATE erasures SET state = $state, found = $found, error = NULL WHERE id = $id

-- name: failed
UPDATE erasures SET error = $error WHERE id = $id

-- name: forget_selection
UPDATE erasures SET selection = NULL WHERE id = $id

-- name: done
UPDATE erasures SET state = 'done', done_at = $now, receipt = $receipt, error = NULL WHERE id = $id

-- name: done_in_part
UPDATE erasures SET receipt = $receipt WHERE id = $id

-- name: tombstones_of
SELECT kind, key_id, hash, since, until FROM tombstones WHERE erasure_id = $id

-- name: to_apply
-- The erasures that a leader of the cluster has carried out, and this daemon has not. A leader carries out those that are
-- not done itself.
SELECT id, found FROM erasures
WHERE id NOT IN (SELECT erasure_id FROM erasures_applied)
    AND (state = 'done' OR $follows AND state IN ('rewriting', 'swapping'))
ORDER BY requested_at, id

-- name: mark
-- Until it is applied, an erasure stands in `erasures_applied` with the mark of its `found` if the files of this daemon
-- were rewritten.
INSERT INTO erasures_applied VALUES ($id || ' ' || $mark)

-- name: is_marked
SELECT 1 FROM erasures_applied WHERE erasure_id = $id || ' ' || $mark

-- name: forget_marks
DELETE FROM erasures_applied WHERE starts_with(erasure_id, $id || ' ')

-- name: applied
INSERT INTO erasures_applied VALUES ($id) ON CONFLICT DO NOTHING

-- name: put_tombstones
INSERT INTO tombstones (erasure_id, kind, key_id, hash, since, until)
SELECT $id, unnest($kinds::VARCHAR[]), unnest($keys::VARCHAR[]), unnest($hashes::VARCHAR[]),
    unnest($sinces::TIMESTAMP[]), unnest($untils::TIMESTAMP[])
