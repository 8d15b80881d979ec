-- The tables that can be exported, in the order of their rows.

-- name: interactions
SELECT * EXCLUDE (batch) FROM interactions
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR timestamp >= $since) AND ($until IS NULL OR timestamp < $until)

-- name: feedback
SELECT * EXCLUDE (batch) FROM feedback
WHERE ($workload IS NULL OR interaction_id IN (SELECT id FROM interactions WHERE workload = $workload))
  AND ($since IS NULL OR timestamp >= $since) AND ($until IS NULL OR timestamp < $until)

-- name: dead_letters
SELECT * FROM dead_letters
WHERE ($since IS NULL OR received_at >= $since) AND ($until IS NULL OR received_at < $until)

-- name: offsets
SELECT * FROM offsets

-- name: datasets
SELECT * FROM datasets
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: dataset_rows
SELECT * FROM dataset_rows
WHERE $workload IS NULL OR dataset_version IN (SELECT version FROM datasets WHERE workload = $workload)

-- name: quarantine
SELECT * FROM quarantine
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: row_states
SELECT * FROM row_states
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR decided_at >= $since) AND ($until IS NULL OR decided_at < $until)

-- name: row_decisions
SELECT * FROM row_decisions
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR decided_at >= $since) AND ($until IS NULL OR decided_at < $until)

-- name: account_decisions
SELECT * FROM account_decisions
WHERE ($workload IS NULL OR workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR decided_at >= $since) AND ($until IS NULL OR decided_at < $until)

-- name: memory_entries
SELECT * FROM memory_entries
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR added_at >= $since) AND ($until IS NULL OR added_at < $until)

-- name: memory_uses
SELECT * FROM memory_uses
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR answered_at >= $since) AND ($until IS NULL OR answered_at < $until)

-- name: runs
SELECT * FROM runs
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR started_at >= $since) AND ($until IS NULL OR started_at < $until)

-- name: evaluations
-- Adds the question and the approved answer, which are null for prompts outside datasets and for recent traffic without
-- an approved answer.
WITH origins AS (
    SELECT dataset_version, row_id, any_value(interaction_id) AS interaction_id, any_value(feedback_id) AS feedback_id
    FROM dataset_rows GROUP BY dataset_version, row_id
)
SELECT evaluations.*,
       last_question(messages) AS question,
       CASE WHEN feedback.name = 'correction' THEN feedback.value ->> '$' WHEN feedback.id IS NOT NULL THEN response END AS approved
FROM evaluations
LEFT JOIN origins USING (dataset_version, row_id)
LEFT JOIN interactions ON interactions.id = origins.interaction_id
LEFT JOIN feedback ON feedback.id = origins.feedback_id
WHERE $workload IS NULL OR evaluations.workload = $workload

-- name: evaluation_texts
-- A row for each question of a run: the approved answer beside those of the base model, the champion and the candidate.
WITH origins AS (
    SELECT dataset_version, row_id, any_value(interaction_id) AS interaction_id, any_value(feedback_id) AS feedback_id
    FROM dataset_rows GROUP BY dataset_version, row_id
),
answers AS (
    SELECT e.*, CASE model WHEN 'base' THEN 'base' WHEN 'logged' THEN 'logged' WHEN r.parent_version THEN 'champion'
                ELSE 'candidate' END AS part
    FROM evaluations e LEFT JOIN runs r ON r.id = split_part(e.run_id, '-evaluation-', 1)
    WHERE $workload IS NULL OR e.workload = $workload
),
texts AS (
    SELECT run_id, workload, dataset_version, split, row_id, max(model) FILTER (part = 'candidate') AS version,
           max(output) FILTER (part = 'base') AS base, max(output) FILTER (part = 'champion') AS champion,
           max(output) FILTER (part = 'candidate') AS candidate, max(score) FILTER (part = 'champion') AS champion_score,
           max(score) FILTER (part = 'candidate') AS candidate_score
    FROM answers GROUP BY ALL
)
SELECT last_question(messages) AS question,
       CASE WHEN feedback.name = 'correction' THEN feedback.value ->> '$' WHEN feedback.id IS NOT NULL THEN response END AS approved,
       base, champion, candidate, champion_score, candidate_score, texts.workload, version, run_id, split, row_id
FROM texts
LEFT JOIN origins USING (dataset_version, row_id)
LEFT JOIN interactions ON interactions.id = origins.interaction_id
LEFT JOIN feedback ON feedback.id = origins.feedback_id
ORDER BY run_id, split, row_id

-- name: decisions
SELECT * FROM decisions
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: models
SELECT * FROM models
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: aliases
SELECT * FROM aliases
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: deployments
SELECT * FROM deployments
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR since >= $since) AND ($until IS NULL OR since < $until)

-- name: promotions
SELECT * FROM promotions
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: approvals
SELECT * FROM approvals
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR requested_at >= $since) AND ($until IS NULL OR requested_at < $until)

-- name: drift_checks
SELECT * FROM drift_checks
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: drift_references
SELECT * FROM drift_references
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: watch_checks
SELECT * FROM watch_checks
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: rollouts
SELECT * FROM rollouts
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: rollout_checks
SELECT * FROM rollout_checks
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: shadow_answers
SELECT * EXCLUDE (batch) FROM shadow_answers
WHERE ($workload IS NULL OR interaction_id IN (SELECT id FROM interactions WHERE workload = $workload))
  AND ($since IS NULL OR timestamp >= $since) AND ($until IS NULL OR timestamp < $until)

-- name: shadow_scores
SELECT * FROM shadow_scores
WHERE ($workload IS NULL OR experiment IN (SELECT id FROM rollouts WHERE workload = $workload))
  AND ($since IS NULL OR scored_at >= $since) AND ($until IS NULL OR scored_at < $until)

-- name: exams
SELECT * FROM exams
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR taken_at >= $since) AND ($until IS NULL OR taken_at < $until)

-- name: quality
SELECT * FROM quality
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: ledger_left_out
SELECT * FROM ledger_left_out
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: ledger
SELECT * FROM ledger
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: archives
SELECT * FROM archives
WHERE ($since IS NULL OR last_received_at >= $since) AND ($until IS NULL OR first_received_at < $until)

-- name: label_requests
SELECT * FROM label_requests
WHERE ($workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)

-- name: pauses
SELECT * FROM pauses
WHERE ($workload IS NULL OR workload IS NULL OR workload = $workload)
  AND ($since IS NULL OR created_at >= $since) AND ($until IS NULL OR created_at < $until)
