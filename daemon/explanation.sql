-- Why a version answers as it does, and which version gave an answer.

-- name: versions
SELECT workload, version FROM models WHERE $id IN (version, workload || '@' || version) ORDER BY workload

-- name: answer
-- An id may come again after ingest.deduplicate_seconds: the latest of that name. In the columns of `examples.example`, with
-- the version that answered, if it is one of ours.
SELECT
    i.workload, i.model, version_of(i.workload, regexp_replace(i.model, '\+cascade$', '')) AS version,
    i.attributes -> '$.memory.entries' AS memory,
    i.id AS interaction_id, i.timestamp, i.received_at, i.user_id, i.messages, i.response, i.context,
    i.attributes -> '$.tools' AS tools, i.attributes -> '$.tool_calls' AS calls, i.conversation_id AS conversation
FROM interactions i
WHERE i.id = $id
ORDER BY i.timestamp DESC
LIMIT 1

-- name: dataset
SELECT version, created_at, train, holdout, replay, removed_at FROM datasets
WHERE workload = $workload AND version = $dataset

-- name: sources
-- Of the rows that are taught. Those of archived events are of an unknown source.
SELECT
    CASE WHEN i.model = 'demonstration' THEN 'demonstration' ELSE coalesce(f.source, 'unknown') END AS source,
    CASE WHEN f.name IS NULL THEN 'unknown' WHEN f.name = 'correction' THEN 'correction' ELSE 'accepted' END AS kind,
    count(DISTINCT r.row_id) AS rows
FROM dataset_rows r
LEFT JOIN feedback f ON f.id = r.feedback_id
LEFT JOIN interactions i ON i.id = r.interaction_id AND i.workload = $workload
WHERE r.dataset_version = $dataset AND r.split = 'train'
GROUP BY ALL
ORDER BY rows DESC, source, kind

-- name: accounts
-- The rows of each account that taught, by its pseudonym, and its share of all rows that are taught.
WITH taught AS (
    SELECT DISTINCT r.row_id, CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account
    FROM dataset_rows r
    LEFT JOIN feedback f ON f.id = r.feedback_id
    LEFT JOIN interactions i ON i.id = r.interaction_id AND i.workload = $workload
    WHERE r.dataset_version = $dataset AND r.split = 'train'
)
SELECT account, count(*) AS rows, count(*) / (SELECT count(DISTINCT row_id) FROM taught) AS share
FROM taught
WHERE account IS NOT NULL
GROUP BY account
ORDER BY rows DESC, account

-- name: run
SELECT id, reasons, started_at, finished_at FROM runs WHERE id = $run

-- name: decisions
-- What was decided about a version, by rules and by people, oldest first.
SELECT created_at, kind, outcome, 'gate' AS actor, reasons FROM decisions WHERE run_id = $run
UNION ALL
SELECT decided_at, 'approval', state = 'approved', actor, to_json([reason]) FROM approvals
WHERE workload = $workload AND version = $version AND state IN ('approved', 'refused')
UNION ALL
SELECT created_at, event, true, actor, to_json([reason]) FROM promotions
WHERE workload = $workload AND $version IN (version, previous_version)
ORDER BY ALL

-- name: evaluations
SELECT split, model, count(score) AS answers, avg(score) AS score FROM evaluations
WHERE run_id = $run AND score IS NOT NULL
GROUP BY ALL
ORDER BY split, model

-- name: training_now
SELECT id FROM runs WHERE state = 'running' LIMIT 1
