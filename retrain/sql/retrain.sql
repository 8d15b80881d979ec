-- name: corrections
SELECT
    f.id AS feedback_id, f.timestamp, f.source, f.value ->> '$' AS completion, greatest(f.received_at, i.received_at) AS received_at,
    i.id AS interaction_id, i.messages, i.response, i.context
FROM feedback f
JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.name = 'correction' AND json_type(f.value) = 'VARCHAR'
ORDER BY f.timestamp DESC, f.id
LIMIT $limit

-- name: accepted
-- Answers that somebody called good, and nobody called bad, wrong or invented.
WITH judged AS (
    SELECT
        f.interaction_id,
        arg_max(f.id, f.timestamp) FILTER (WHERE good) AS feedback_id,
        max(f.timestamp) FILTER (WHERE good) AS timestamp,
        arg_max(f.source, f.timestamp) FILTER (WHERE good) AS source,
        max(f.received_at) AS received_at
    FROM (
        SELECT
            *,
            (name = 'helpful' AND TRY_CAST(value AS BOOLEAN)) OR (name = 'rating' AND TRY_CAST(value AS DOUBLE) >= 0.8) AS good,
            (name = 'helpful' AND NOT TRY_CAST(value AS BOOLEAN)) OR (name = 'hallucination' AND TRY_CAST(value AS BOOLEAN)) AS bad
        FROM feedback
        WHERE name IN ('helpful', 'rating', 'hallucination')
    ) f
    GROUP BY f.interaction_id
    HAVING bool_or(good) AND NOT coalesce(bool_or(bad), false)
)
SELECT
    j.feedback_id, j.timestamp, j.source, i.response AS completion, greatest(j.received_at, i.received_at) AS received_at,
    i.id AS interaction_id, i.messages, i.response, i.context
FROM judged j
JOIN interactions i ON i.id = j.interaction_id
WHERE i.workload = $workload
ORDER BY j.timestamp DESC, j.feedback_id
LIMIT $limit

-- name: thumbs
-- The last word of people on an answer.
WITH judged AS (
    SELECT
        interaction_id,
        arg_max(id, timestamp) AS feedback_id,
        arg_max(source, timestamp) AS source,
        arg_max(value::VARCHAR, timestamp) = 'true' AS helpful,
        max(timestamp) AS timestamp,
        max(received_at) AS received_at
    FROM feedback
    WHERE name = 'helpful' AND source IN ('user', 'expert') AND value::VARCHAR IN ('true', 'false')
    GROUP BY interaction_id
)
SELECT
    j.feedback_id, j.timestamp, j.source, j.helpful, i.response AS completion,
    greatest(j.received_at, i.received_at) AS received_at, i.id AS interaction_id, i.messages, i.response, i.context
FROM judged j
JOIN interactions i ON i.id = j.interaction_id
WHERE i.workload = $workload
ORDER BY j.timestamp DESC, j.feedback_id
LIMIT $limit

-- name: earlier_datasets
SELECT version, path, created_at
FROM datasets
WHERE workload = $workload
    AND created_at <= (SELECT created_at FROM datasets WHERE workload = $workload AND version = $version)
ORDER BY created_at DESC, version

-- name: dataset
SELECT * FROM datasets WHERE workload = $workload AND version = $version

-- name: dataset_lineage
INSERT INTO dataset_rows (dataset_version, row_id, split, prompt_hash, interaction_id, feedback_id)
SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: champion
SELECT m.* FROM aliases a JOIN models m ON m.workload = a.workload AND m.version = a.version
WHERE a.workload = $workload AND a.alias = 'champion'

-- name: aliases
SELECT workload, alias, version FROM aliases WHERE $workload IS NULL OR workload = $workload ORDER BY workload, alias

-- name: versions
SELECT * FROM models WHERE workload = $workload ORDER BY created_at, version

-- name: drop_alias
DELETE FROM aliases WHERE workload = $workload AND alias = $alias

-- name: unannounced
SELECT p.*, m.path, known.base_model
FROM promotions p
LEFT JOIN models m ON m.workload = p.workload AND m.version = p.version
LEFT JOIN models known ON known.workload = p.workload AND known.version = coalesce(p.version, p.previous_version)
WHERE NOT p.announced
ORDER BY p.created_at, p.rowid

-- name: announced
UPDATE promotions SET announced = true WHERE id = $id

-- name: unfinished_run
SELECT * FROM runs WHERE state IN ('running', 'interrupted') ORDER BY started_at LIMIT 1

-- name: gate_decision
SELECT outcome, reasons, figures FROM decisions WHERE run_id = $run_id AND kind = 'gate'

-- name: promotions
SELECT event, count(*) AS count FROM promotions WHERE workload = $workload GROUP BY event

-- name: holdout_tries
-- Decisions on a holdout of which the given dataset's has at least the given share of its rows.
WITH held_out AS (
    SELECT DISTINCT dataset_version, row_id FROM dataset_rows WHERE split = 'holdout'
), shared AS (
    SELECT other.dataset_version, count(*) AS rows
    FROM held_out own
    JOIN held_out other USING (row_id)
    WHERE own.dataset_version = $version
    GROUP BY other.dataset_version
)
SELECT count(*) AS tries
FROM decisions d
JOIN runs r ON r.id = d.run_id
JOIN shared ON shared.dataset_version = r.dataset_version
WHERE d.kind = 'gate' AND d.workload = $workload
    AND shared.rows >= $shared * (SELECT count(*) FROM held_out WHERE dataset_version = $version)

-- name: holdout_generation
-- The latest draw of the holdout, and the decisions on it since the champion's dataset.
WITH drawn AS (
    SELECT version, created_at, coalesce((card ->> 'generation')::INTEGER, 0) AS generation
    FROM datasets
    WHERE workload = $workload
)
SELECT drawn.generation, (
    SELECT count(*)
    FROM decisions d
    JOIN runs r ON r.id = d.run_id
    JOIN drawn judged ON judged.version = r.dataset_version
    WHERE d.kind = 'gate' AND d.workload = $workload AND judged.generation = drawn.generation
        AND ($version IS NULL OR judged.created_at > (SELECT created_at FROM drawn WHERE version = $version))
) AS decisions
FROM drawn
ORDER BY drawn.generation DESC
LIMIT 1

-- name: spent_datasets
-- Datasets after the given one whose holdout was drawn before a generation.
SELECT version
FROM datasets
WHERE workload = $workload AND coalesce((card ->> 'generation')::INTEGER, 0) < $generation
    AND ($version IS NULL OR created_at > (SELECT created_at FROM datasets WHERE workload = $workload AND version = $version))
ORDER BY created_at DESC, version
