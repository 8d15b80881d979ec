-- name: corrections
-- Of users who are not named with the feedback, it is who asked. What was imported as a demonstration is a source of its
-- own, until somebody corrects it.
SELECT
    f.id AS feedback_id, f.timestamp, f.value AS completion, greatest(f.received_at, i.received_at) AS received_at,
    CASE WHEN i.model = 'demonstration' AND f.source = 'expert'
              AND coalesce(f.value ->> '$.content', f.value ->> '$') = i.response
              AND (f.value -> '$.tool_calls') IS NOT DISTINCT FROM (i.attributes -> '$.tool_calls') THEN 'demonstration'
         ELSE f.source END AS source,
    CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS user_id,
    i.id AS interaction_id, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools,
    i.attributes -> '$.tool_calls' AS calls, i.finish_reason
FROM feedback f
JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.name = 'correction' AND json_type(f.value) IN ('VARCHAR', 'OBJECT', 'ARRAY')
ORDER BY f.timestamp DESC, f.id
LIMIT $limit

-- name: accepted
-- Answers that somebody called good, and nobody called bad, wrong or invented. Accounts that are distrusted do not
-- count against an answer, nor for it where somebody else does.
WITH said AS (
    SELECT
        f.interaction_id, f.timestamp, f.received_at,
        CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account,
        coalesce(account IN (SELECT unnest($distrusted::VARCHAR[])), false) AS distrusted,
        (f.name = 'helpful' AND TRY_CAST(f.value AS BOOLEAN)) OR (f.name = 'rating' AND TRY_CAST(f.value AS DOUBLE) >= 0.8) AS good,
        (f.name = 'helpful' AND NOT TRY_CAST(f.value AS BOOLEAN)) OR (f.name = 'hallucination' AND TRY_CAST(f.value AS BOOLEAN)) AS bad,
        {'id': f.id, 'timestamp': f.timestamp, 'source': f.source, 'user_id': account} AS vote
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name IN ('helpful', 'rating', 'hallucination')
), judged AS (
    SELECT
        interaction_id,
        coalesce(arg_max(vote, timestamp) FILTER (good AND NOT distrusted), arg_max(vote, timestamp) FILTER (good)) AS last,
        max(received_at) AS received_at
    FROM said
    GROUP BY interaction_id
    HAVING bool_or(good) AND NOT coalesce(bool_or(bad AND NOT distrusted), false)
)
SELECT
    j.last.id AS feedback_id, j.last.timestamp AS timestamp, j.last.source AS source, j.last.user_id AS user_id,
    i.response AS completion, greatest(j.received_at, i.received_at) AS received_at,
    i.id AS interaction_id, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools,
    i.attributes -> '$.tool_calls' AS calls, i.attributes ->> '$.reasoning_content' AS thought, i.finish_reason
FROM judged j
JOIN interactions i ON i.id = j.interaction_id
ORDER BY j.last.timestamp DESC, j.last.id
LIMIT $limit

-- name: thumbs
-- The last word of people on an answer.
WITH said AS (
    SELECT
        f.interaction_id, f.received_at, f.timestamp, f.value,
        CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account,
        {
            'id': f.id, 'timestamp': f.timestamp, 'source': f.source, 'helpful': f.value::VARCHAR = 'true',
            'user_id': account
        } AS vote
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name = 'helpful' AND f.source IN ('user', 'expert')
), judged AS (
    SELECT interaction_id, arg_max(vote, timestamp) AS last, max(received_at) AS received_at
    FROM said
    WHERE value::VARCHAR IN ('true', 'false')
        AND (account IS NULL OR account NOT IN (SELECT unnest($distrusted::VARCHAR[])))
    GROUP BY interaction_id
)
SELECT
    j.last.id AS feedback_id, j.last.timestamp AS timestamp, j.last.source AS source, j.last.user_id AS user_id,
    j.last.helpful AS helpful, i.response AS completion, greatest(j.received_at, i.received_at) AS received_at,
    i.id AS interaction_id, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools,
    i.attributes -> '$.tool_calls' AS calls, i.attributes ->> '$.reasoning_content' AS thought
FROM judged j
JOIN interactions i ON i.id = j.interaction_id
ORDER BY j.last.timestamp DESC, j.last.id
LIMIT $limit

-- name: first_seen
-- When each account was first heard of, in whatever workload.
SELECT user_id, min(timestamp) AS first_seen
FROM (SELECT user_id, timestamp FROM interactions UNION ALL SELECT user_id, timestamp FROM feedback)
WHERE user_id IN (SELECT unnest($accounts::VARCHAR[]))
GROUP BY user_id

-- name: places
-- Where the questions of earlier datasets of a draw stood: what was judged on before what was trained on. By their hash,
-- and by interaction: up to version 0.1.0 the hash was of the conversation alone.
SELECT keys.key, min(CASE r.split WHEN 'holdout' THEN 0 WHEN 'validation' THEN 1 ELSE 2 END) AS place
FROM dataset_rows r
JOIN datasets d ON d.version = r.dataset_version AND d.workload = $workload
CROSS JOIN unnest([r.prompt_hash, r.interaction_id]) AS keys(key)
WHERE r.split IN ('holdout', 'validation', 'train') AND coalesce((d.card ->> 'generation')::INTEGER, 0) = $generation
GROUP BY keys.key

-- name: latest_dataset
SELECT path, card FROM datasets WHERE workload = $workload AND removed_at IS NULL ORDER BY created_at DESC, version LIMIT 1

-- name: forget_quarantine
DELETE FROM quarantine WHERE workload = $workload

-- name: quarantine
INSERT INTO quarantine BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: quarantined
SELECT reason, count(*) AS count FROM quarantine WHERE workload = $workload GROUP BY reason

-- name: earlier_datasets
SELECT version, path, created_at
FROM datasets
WHERE workload = $workload AND removed_at IS NULL
    AND created_at <= (SELECT created_at FROM datasets WHERE workload = $workload AND version = $version)
ORDER BY created_at DESC, version

-- name: failures
-- Of each topic, how wrong a version's answers were wherever it was judged.
SELECT topic, 1 - avg(score) AS failures
FROM evaluations
WHERE workload = $workload AND model = $version AND split IN ('holdout', 'regression') AND topic IS NOT NULL
GROUP BY topic
HAVING avg(score) IS NOT NULL

-- name: dataset
SELECT * FROM datasets WHERE workload = $workload AND version = $version

-- name: keep_dataset
UPDATE datasets SET removed_at = NULL WHERE workload = $workload AND version = $version

-- name: dataset_lineage
INSERT INTO dataset_rows (dataset_version, row_id, split, prompt_hash, interaction_id, feedback_id)
SELECT $version, row_id, parse_filename(filename, true), prompt_hash, interaction_id, feedback_id
FROM read_parquet($files, filename = true, union_by_name = true)

-- name: champion
SELECT m.* FROM aliases a JOIN models m ON m.workload = a.workload AND m.version = a.version
WHERE a.workload = coalesce($workload, a.workload) AND a.alias = 'champion'

-- name: aliases
SELECT workload, alias, version FROM aliases WHERE $workload IS NULL OR workload = $workload ORDER BY workload, alias

-- name: versions
SELECT * FROM models WHERE workload = $workload ORDER BY created_at, version

-- name: keep_version
-- One that retention removed was made again.
UPDATE models SET removed_at = NULL WHERE workload = $workload AND version = $version AND removed_at IS NOT NULL

-- name: drop_alias
DELETE FROM aliases WHERE workload = $workload AND alias = $alias

-- name: changes
-- Changes of champion, those that were not announced yet or all, oldest first. What a provider serves has its name there: of the base model it is the base model's own.
SELECT p.*, m.path, known.base_model,
       CASE WHEN p.version IS NOT NULL THEN m.provider_model
            WHEN known.provider_model IS NOT NULL THEN known.base_model END AS provider_model
FROM promotions p
LEFT JOIN models m ON m.workload = p.workload AND m.version = p.version
LEFT JOIN models known ON known.workload = p.workload AND known.version = coalesce(p.version, p.previous_version)
WHERE p.workload = $workload AND ($announced OR NOT p.announced)
ORDER BY p.created_at, p.rowid

-- name: changed
SELECT workload FROM promotions UNION SELECT workload FROM approvals ORDER BY workload

-- name: announced
UPDATE promotions SET announced = true WHERE id = $id

-- name: rollouts
-- Those under way.
SELECT * FROM rollouts WHERE ended_at IS NULL AND workload = coalesce($workload, workload) ORDER BY workload

-- name: routes
-- Who answers the conversations of each workload: its champion or, while its traffic is split, two versions. Before the
-- first promotion there is no champion, and may be a canary.
SELECT workload, champions.version AS champion, experiments.id AS experiment, experiments.version,
       experiments.previous_version, experiments.share
FROM (SELECT workload, version FROM aliases WHERE alias = 'champion') AS champions
FULL JOIN (SELECT * FROM rollouts WHERE ended_at IS NULL) AS experiments USING (workload)
ORDER BY workload

-- name: drop_rollout
DELETE FROM rollouts WHERE id = $id

-- name: taken_back
-- When and why a version was last taken back from service.
SELECT created_at, actor, reason FROM promotions
WHERE workload = $workload AND event IN ('rolled_back', 'canary_rolled_back') AND previous_version = $version
ORDER BY created_at DESC LIMIT 1

-- name: unfinished_runs
-- What was begun comes before what waits. Passed: the gate's decision; null: it was not reached.
SELECT runs.*, (SELECT bool_or(outcome) FROM decisions WHERE run_id = runs.id AND kind = 'gate') AS passed
FROM runs
WHERE state IN ('waiting', 'running', 'interrupted') AND workload = coalesce($workload, workload)
ORDER BY state = 'waiting', started_at, id

-- name: at_any_hour
UPDATE runs SET at_any_hour = true WHERE state IN ('waiting', 'interrupted') AND workload = $workload

-- name: cancel_runs
UPDATE runs SET state = 'cancelled', finished_at = $now, error = $error WHERE list_contains($ids, id)

-- name: logged_answers
-- What production answered to the questions of a split. Of what was imported as a demonstration nothing was answered.
SELECT DISTINCT r.row_id, i.response, i.attributes -> '$.tool_calls' AS calls
FROM dataset_rows r
JOIN interactions i ON i.id = r.interaction_id AND i.workload = $workload AND i.model <> 'demonstration'
WHERE r.dataset_version = $version AND r.split = $split

-- name: gate_decision
SELECT outcome, reasons, figures FROM decisions WHERE run_id = $run_id AND kind = 'gate'

-- name: promotions
SELECT event, count(*) AS count FROM promotions WHERE workload = $workload GROUP BY event

-- name: lineage
-- Which rows came from an interaction or a feedback, or stand in a dataset, or taught a version; and which versions
-- learned from each: those trained on its dataset, and those whose training began from these.
WITH RECURSIVE learned AS (
    SELECT workload, version, dataset_version FROM models
    UNION
    SELECT m.workload, m.version, l.dataset_version
    FROM models m JOIN learned l ON l.workload = m.workload AND l.version = m.parent_version
), taught AS (
    SELECT dataset_version, list(workload || '@' || version ORDER BY version) AS models FROM learned GROUP BY dataset_version
)
SELECT
    d.workload, r.dataset_version, d.created_at, r.split, r.row_id, r.interaction_id, r.feedback_id,
    CASE WHEN r.split IN ('train', 'validation', 'thumbs') THEN coalesce(t.models, []) ELSE [] END AS models
FROM dataset_rows r
JOIN datasets d ON d.version = r.dataset_version
LEFT JOIN taught t ON t.dataset_version = r.dataset_version
WHERE $id IN (r.interaction_id, r.feedback_id, r.row_id, r.dataset_version)
    OR r.dataset_version IN (SELECT dataset_version FROM learned WHERE $id IN (version, workload || '@' || version))
ORDER BY d.created_at, r.dataset_version, r.split, r.row_id

-- name: removed
-- What retention removed of a dataset or of a version.
SELECT kind, workload, version, created_at, removed_at
FROM (
    SELECT 'version' AS kind, workload, version, created_at, removed_at FROM models
    UNION ALL
    SELECT 'dataset', workload, version, created_at, removed_at FROM datasets
)
WHERE removed_at IS NOT NULL AND $id IN (version, workload || '@' || version)
ORDER BY ALL

-- name: removed_datasets
SELECT count(*) AS count, max(removed_at) AS latest FROM datasets WHERE removed_at IS NOT NULL

-- name: all_datasets
SELECT workload, version AS dataset_version, created_at, path FROM datasets WHERE removed_at IS NULL ORDER BY created_at, dataset_version

-- name: in_quarantine
SELECT workload, feedback_id, interaction_id, user_id, reason, detail, dataset_version, created_at
FROM quarantine WHERE $id IN (interaction_id, feedback_id, user_id)
ORDER BY feedback_id

-- name: gate_tries
-- Comparisons of candidates with one champion, or with the base model. A decision states how many there were with its
-- own; one for want of examples made none.
SELECT coalesce(max((d.figures ->> 'tries')::DOUBLE), 0)::INTEGER AS tries
FROM decisions d
JOIN runs r ON r.id = d.run_id
WHERE d.kind = 'gate' AND d.workload = $workload AND r.parent_version IS NOT DISTINCT FROM $champion

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
WHERE workload = $workload AND removed_at IS NULL AND coalesce((card ->> 'generation')::INTEGER, 0) < $generation
    AND ($version IS NULL OR created_at > (SELECT created_at FROM datasets WHERE workload = $workload AND version = $version))
ORDER BY created_at DESC, version
