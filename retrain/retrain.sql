-- name: among
-- Put before another query, it restricts the events to some feedback and its interactions.
WITH interactions AS (
    SELECT * FROM main.interactions
    WHERE timestamp BETWEEN $first_answer AND $last_answer AND id IN (SELECT unnest($interactions::VARCHAR[]))
), feedback AS (
    SELECT * FROM main.feedback
    WHERE timestamp BETWEEN $first_feedback AND $last_feedback AND id IN (SELECT unnest($feedback::VARCHAR[]))
)

-- name: corrections
-- The newest corrections, and those of interactions that a person wants taught. If feedback of a user has no account, the
-- account of the interaction applies. Demonstrations are a source of their own until they are corrected.
SELECT
    f.id AS feedback_id, f.timestamp, f.value AS completion, greatest(f.received_at, i.received_at) AS received_at,
    CASE WHEN i.model = 'demonstration' AND f.source = 'expert'
              AND coalesce(f.value ->> '$.content', f.value ->> '$') = i.response
              AND (f.value -> '$.tool_calls') IS NOT DISTINCT FROM (i.attributes -> '$.tool_calls') THEN 'demonstration'
         ELSE f.source END AS source,
    CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS user_id,
    i.id AS interaction_id, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools, question_extras(i.attributes) AS extras,
    i.attributes -> '$.tool_calls' AS calls, i.finish_reason, i.conversation_id AS conversation,
    i.attributes ->> '$.incumbent' IS NOT NULL AS bought, ends_with(i.model, '@cascade') AS cascaded
FROM feedback f
JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.name = 'correction' AND json_type(f.value) IN ('VARCHAR', 'OBJECT', 'ARRAY')
QUALIFY row_number() OVER (ORDER BY f.timestamp DESC, f.id) <= $limit OR i.id IN (
    SELECT interaction_id FROM row_decisions
    WHERE workload = $workload AND superseded_at IS NULL AND action IN ('keep', 'pin', 'edit')
)
ORDER BY f.timestamp DESC, f.id

-- name: verdicts
-- The last verdict of each account on an answer: good or bad (see `approves`). A correction of the same account replaces it.
-- A neutral rating takes earlier ratings and thumbs back, and "no hallucination" an earlier "hallucination": neither is a
-- verdict. Good and bad ones are limited apart, so that many of one kind leave the other its place. Verdicts on answers that a
-- person wants taught are always read.
WITH wanted AS (
    SELECT interaction_id FROM row_decisions
    WHERE workload = $workload AND superseded_at IS NULL AND action IN ('keep', 'pin', 'edit')
), said AS (
    SELECT
        f.id, f.interaction_id, f.timestamp, f.received_at, f.source,
        CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account,
        coalesce(account, CASE WHEN f.source = 'user' THEN f.id ELSE f.source END) AS voter,
        approves(f.name, f.value) AS good
    FROM feedback f
    JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name IN ('helpful', 'rating', 'hallucination')
    QUALIFY row_number() OVER (
        PARTITION BY f.interaction_id, voter, f.source, f.name = 'hallucination'
        ORDER BY f.timestamp DESC, good NULLS LAST, f.id DESC
    ) = 1 OR f.interaction_id IN (FROM wanted)
), last AS (
    SELECT interaction_id, voter, source, arg_max(said, (timestamp, NOT good, id)) AS vote
    FROM said
    WHERE good IS NOT NULL
    GROUP BY interaction_id, voter, source
)
SELECT
    l.vote.id AS feedback_id, l.vote.timestamp AS timestamp, l.vote.source AS source, l.vote.account AS user_id,
    l.vote.good AS good, i.response AS completion, greatest(l.vote.received_at, i.received_at) AS received_at,
    i.id AS interaction_id, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools, question_extras(i.attributes) AS extras,
    i.attributes -> '$.tool_calls' AS calls, i.attributes ->> '$.reasoning_content' AS thought, i.finish_reason,
    i.conversation_id AS conversation, i.attributes ->> '$.incumbent' IS NOT NULL AS bought,
    ends_with(i.model, '@cascade') AS cascaded, json_extract_string(i.attributes, '$.memory.entries[*]') AS entries
FROM last l
JOIN interactions i ON i.id = l.interaction_id
QUALIFY row_number() OVER (PARTITION BY l.vote.good ORDER BY l.vote.timestamp DESC, l.vote.id) <= $limit
    OR i.id IN (FROM wanted)
ORDER BY l.vote.timestamp DESC, l.vote.id

-- name: entries
-- The answers of entries of the memory. One that was erased has none.
SELECT id, answer FROM memory_entries WHERE workload = $workload AND id IN (SELECT unnest($ids::VARCHAR[])) AND answer <> ''

-- name: thumbs
-- The last thumb on each answer; up and down are limited apart.
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
    i.id AS interaction_id, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools, question_extras(i.attributes) AS extras,
    i.attributes -> '$.tool_calls' AS calls, i.attributes ->> '$.reasoning_content' AS thought, i.finish_reason,
    i.conversation_id AS conversation, i.attributes ->> '$.incumbent' IS NOT NULL AS bought
FROM judged j
JOIN interactions i ON i.id = j.interaction_id
QUALIFY row_number() OVER (PARTITION BY j.last.helpful ORDER BY j.last.timestamp DESC, j.last.id) <= $limit
ORDER BY j.last.timestamp DESC, j.last.id

-- name: first_seen
-- The time of each account's first event, in any workload.
SELECT user_id, min(timestamp) AS first_seen
FROM (SELECT user_id, timestamp FROM interactions UNION ALL SELECT user_id, timestamp FROM feedback)
WHERE user_id IN (SELECT unnest($accounts::VARCHAR[]))
GROUP BY user_id

-- name: places
-- The splits of questions in earlier datasets of a draw, the holdout first. By hash, and by interaction, because up to version
-- 0.1.0 the hash covered the conversation only.
SELECT keys.key, min(CASE r.split WHEN 'holdout' THEN 0 ELSE 1 END) AS place
FROM dataset_rows r
JOIN datasets d ON d.version = r.dataset_version AND d.workload = $workload
CROSS JOIN unnest([r.prompt_hash, r.interaction_id]) AS keys(key)
WHERE r.split IN ('holdout', 'train') AND coalesce((d.card ->> 'generation')::INTEGER, 0) = $generation
GROUP BY keys.key

-- name: held_feedback
-- The feedback whose answers datasets contain.
SELECT DISTINCT feedback_id FROM dataset_rows
WHERE dataset_version IN (SELECT unnest($versions::VARCHAR[])) AND split IN ('train', 'holdout', 'regression')

-- name: latest_dataset
SELECT path, card FROM datasets WHERE workload = $workload AND removed_at IS NULL ORDER BY created_at DESC, version LIMIT 1

-- name: forget_states
DELETE FROM row_states WHERE workload = $workload

-- name: states
INSERT INTO row_states BY NAME
SELECT *, $workload AS workload, $version AS dataset_version, $now AS decided_at
FROM (SELECT unnest(from_json($rows, '[{
    "feedback_id": "VARCHAR", "interaction_id": "VARCHAR", "user_id": "VARCHAR", "state": "VARCHAR", "reason": "VARCHAR",
    "detail": "VARCHAR", "quarantined": "BOOLEAN", "other_feedback_id": "VARCHAR"
}]'), recursive := true))

-- name: quarantined
SELECT reason, count(*) AS count FROM quarantine WHERE workload = $workload GROUP BY reason

-- name: earlier_datasets
SELECT version, path, created_at
FROM datasets
WHERE workload = $workload AND removed_at IS NULL
    AND created_at <= (SELECT created_at FROM datasets WHERE workload = $workload AND version = $version)
ORDER BY created_at DESC, version

-- name: failures
-- The mean error of a version on each topic of its evaluation.
SELECT topic, 1 - avg(score) AS failures
FROM evaluations
WHERE workload = $workload AND model = $version AND split IN ('holdout', 'regression') AND topic IS NOT NULL
GROUP BY topic
HAVING avg(score) IS NOT NULL

-- name: dataset
SELECT * FROM datasets WHERE workload = $workload AND version = $version

-- name: keep_dataset
UPDATE datasets SET removed_at = NULL, decisions = $decisions WHERE workload = $workload AND version = $version

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
-- A version that retention had removed was registered again.
UPDATE models SET removed_at = NULL WHERE workload = $workload AND version = $version AND removed_at IS NOT NULL

-- name: drop_alias
DELETE FROM aliases WHERE workload = $workload AND alias = $alias

-- name: changes
-- Changes of what serves, in the order in which they were made (see `order_changes`); none if none is to be announced
-- and there are no requests.
SELECT p.*, m.path, known.base_model,
       if(p.event = 'canary', p.previous_version, p.version) AS champion, champion.path AS champion_path
FROM promotions p
LEFT JOIN models m ON m.workload = p.workload AND m.version = p.version
LEFT JOIN models champion
    ON champion.workload = p.workload AND champion.version = if(p.event = 'canary', p.previous_version, p.version)
LEFT JOIN models known ON known.workload = p.workload AND known.version = coalesce(p.version, p.previous_version)
WHERE p.workload = $workload AND ($requests OR EXISTS (FROM promotions WHERE workload = $workload AND NOT announced))
ORDER BY p.created_at, p.rowid

-- name: order_changes
-- Runs before a change is stored. Changes with a later time were made while the clock was ahead. They get times before $now, so
-- that the order of times is the order in which changes were made.
UPDATE promotions
SET created_at = $now::TIMESTAMP - to_microseconds((
    SELECT count(*) FROM promotions AS other
    WHERE other.workload = $workload AND (other.created_at, other.id) >= (promotions.created_at, promotions.id)
))
WHERE workload = $workload AND created_at > $now

-- name: changed
SELECT workload FROM promotions UNION SELECT workload FROM approvals ORDER BY workload

-- name: announced
UPDATE promotions SET announced = true WHERE id = $id

-- name: rollouts
-- Rollouts in progress.
SELECT * FROM rollouts WHERE ended_at IS NULL AND workload = coalesce($workload, workload) ORDER BY workload

-- name: routes
-- The versions that answer each workload: the champion, or two versions in a rollout. Before the first promotion there is no
-- champion, but there may be a canary.
SELECT workload, champions.version AS champion, experiments.id AS experiment, experiments.version,
       experiments.previous_version, experiments.share
FROM (SELECT workload, version FROM aliases WHERE alias = 'champion') AS champions
FULL JOIN (SELECT * FROM rollouts WHERE ended_at IS NULL) AS experiments USING (workload)
ORDER BY workload

-- name: drop_rollout
DELETE FROM rollouts WHERE id = $id

-- name: taken_back
-- The last time a version was taken back, with the reason.
SELECT created_at, actor, reason FROM promotions
WHERE workload = $workload AND event IN ('rolled_back', 'canary_rolled_back') AND previous_version = $version
ORDER BY created_at DESC LIMIT 1

-- name: unfinished_runs
-- Interrupted runs come before waiting ones. `passed` is the gate's decision, if there is one.
SELECT runs.*, (SELECT bool_or(outcome) FROM decisions WHERE run_id = runs.id AND kind = 'gate') AS passed
FROM runs
WHERE state IN ('waiting', 'running', 'interrupted') AND workload = coalesce($workload, workload)
ORDER BY state = 'waiting', started_at, id

-- name: at_any_hour
UPDATE runs SET at_any_hour = true WHERE state IN ('waiting', 'interrupted') AND workload = $workload

-- name: add_cause
UPDATE runs SET cause = $cause WHERE id = $id

-- name: cancel_runs
UPDATE runs SET state = 'cancelled', finished_at = $now, error = $error WHERE list_contains($ids, id)

-- name: logged_answers
-- The answers of production to the questions of a split; with an incumbent, those of its present model alone. Demonstrations
-- have none. An answer of an earlier version of retuned does not name the model that was asked for: it counts.
-- Answers with the help of the memory are not those of a model.
SELECT DISTINCT r.row_id, i.response, i.attributes -> '$.tool_calls' AS calls
FROM dataset_rows r
JOIN interactions i ON i.id = r.interaction_id AND i.workload = $workload AND i.model <> 'demonstration'
WHERE r.dataset_version = $version AND r.split = $split
    AND coalesce(json_array_length(i.attributes, '$.memory.entries'), 0) = 0
    AND ($incumbent IS NULL
        OR coalesce(i.attributes ->> '$.incumbent_model' = $incumbent, i.attributes ->> '$.incumbent' IS NOT NULL)
        OR i.model = $incumbent
        OR starts_with(i.model, $incumbent || '-'))

-- name: gate_decision
SELECT outcome, reasons, figures FROM decisions WHERE run_id = $run_id AND kind = 'gate'

-- name: promotions
SELECT event, count(*) AS count FROM promotions WHERE workload = $workload GROUP BY event

-- name: lineage
-- The rows of an interaction, feedback, dataset or version, with the versions that were trained on each: those of its dataset,
-- and their descendants. Rows in `validation` ended the trainings of earlier versions of retuned.
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
-- The dataset or version of that name that retention removed.
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
-- The number of comparisons of candidates with a champion or the base model. A decision stores how many there were including
-- its own; one with too few examples made none.
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
-- Datasets after the given one whose holdout is from an earlier draw.
SELECT version
FROM datasets
WHERE workload = $workload AND removed_at IS NULL AND coalesce((card ->> 'generation')::INTEGER, 0) < $generation
    AND ($version IS NULL OR created_at > (SELECT created_at FROM datasets WHERE workload = $workload AND version = $version))
ORDER BY created_at DESC, version

-- name: later_rows
-- Rows of datasets that were built after that of a version; for the base model, of all. Only in an extract.
DELETE FROM dataset_rows
WHERE dataset_version IN (SELECT version FROM datasets WHERE workload = $workload AND created_at > coalesce((
    SELECT d.created_at FROM models m JOIN datasets d ON d.workload = m.workload AND d.version = m.dataset_version
    WHERE m.workload = $workload AND m.version = $start
), TIMESTAMP '1970-01-01'))

-- name: later_datasets
DELETE FROM datasets
WHERE workload = $workload AND created_at > coalesce((
    SELECT d.created_at FROM models m JOIN datasets d ON d.workload = m.workload AND d.version = m.dataset_version
    WHERE m.workload = $workload AND m.version = $start
), TIMESTAMP '1970-01-01')

-- name: start_as_champion
UPDATE aliases SET version = $start WHERE workload = $workload AND alias = 'champion'

-- name: erased_champion
SELECT e.since, e.latest FROM erased_versions e
JOIN aliases a ON a.workload = e.workload AND a.version = e.version AND a.alias = 'champion'
WHERE e.workload = $workload

-- name: erased_standing
SELECT e.workload, e.version, e.since FROM erased_versions e
JOIN models m ON m.workload = e.workload AND m.version = e.version
WHERE m.removed_at IS NULL
