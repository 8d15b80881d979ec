-- name: live
SELECT id, kind, name FROM artifacts WHERE removed_at IS NULL ORDER BY created_at DESC, id;

-- name: files_of
SELECT id, files FROM artifacts WHERE id IN (SELECT unnest($ids::VARCHAR[]));

-- name: of_place
SELECT id, files FROM artifacts WHERE kind = $kind AND name = $name AND removed_at IS NULL;

-- name: replace
UPDATE artifacts SET removed_at = $now WHERE id = $id AND removed_at IS NULL;

-- name: remove
UPDATE artifacts SET removed_at = $now
WHERE kind = $kind AND name IN (SELECT unnest($names::VARCHAR[])) AND removed_at IS NULL;

-- name: removed
-- Removed artifacts, each with the files of the one that replaced it, which shares unchanged files.
SELECT gone.id, gone.files, live.files AS kept
FROM artifacts AS gone
LEFT JOIN artifacts AS live ON live.kind = gone.kind AND live.name = gone.name AND live.removed_at IS NULL
WHERE gone.removed_at IS NOT NULL;

-- name: delete
DELETE FROM artifacts WHERE id IN (SELECT unnest($ids::VARCHAR[]));

-- name: all_files
SELECT kind, name, files FROM artifacts;
