-- name: interaction
-- An id may come again after ingest.deduplicate_seconds: the latest of that name.
SELECT * EXCLUDE (topic, partition, "offset", batch) FROM interactions WHERE id = $id ORDER BY timestamp DESC LIMIT 1

-- name: feedback
-- A user who is not named with the feedback is who asked.
SELECT id, timestamp, name, value, source, CASE WHEN source = 'user' THEN coalesce(user_id, $asker) ELSE user_id END AS user_id
FROM feedback
WHERE interaction_id = $id
ORDER BY timestamp, id

-- name: grounding
SELECT created_at, score, alarm, abstained FROM groundings WHERE interaction_id = $id ORDER BY created_at DESC LIMIT 1

-- name: label_requests
SELECT created_at, reason, detail, answered_at FROM label_requests WHERE interaction_id = $id ORDER BY created_at

-- name: scores
-- What models answered to the rows that were made of it, and how good that was.
SELECT r.started_at, e.split, e.model, e.score, e.hallucinated, e.output
FROM evaluations e JOIN runs r ON r.id = e.run_id
WHERE e.row_id IN (SELECT row_id FROM dataset_rows WHERE interaction_id = $id)
ORDER BY r.started_at, e.split, e.model

-- name: version
-- The version that answered, if it is one of ours.
SELECT version, created_at, dataset_version FROM models WHERE workload = $workload AND version = version_of($workload, $model)
