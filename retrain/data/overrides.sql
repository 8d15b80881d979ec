-- Decisions of people about rows and accounts. A decision supersedes the one before it, which is kept.

-- name: rows
-- Decisions in force, by feedback. A decision about an accepted answer (`answer_to` an interaction) applies to every vote on it.
SELECT coalesce(vote.id, d.feedback_id) AS feedback_id, CASE WHEN d.accepted THEN d.interaction_id END AS answer_to,
       d.action, d.answer, d.reason, d.author, d.decided_at
FROM row_decisions d
LEFT JOIN feedback vote ON d.accepted AND vote.interaction_id = d.interaction_id AND vote.name <> 'correction'
WHERE d.workload = $workload AND d.superseded_at IS NULL AND d.action <> 'release'
ORDER BY d.decided_at

-- name: accounts
-- Decisions in force, by account. A decision for the workload overrides one for all workloads.
SELECT user_id, action, reason, author, decided_at
FROM account_decisions
WHERE (workload = $workload OR workload IS NULL) AND superseded_at IS NULL AND action <> 'release'
ORDER BY workload NULLS FIRST, decided_at

-- name: digest
-- A hash of the decisions in force for a workload.
SELECT coalesce(md5(string_agg(id, ' ' ORDER BY id)), 'none') AS digest
FROM (
    SELECT id FROM row_decisions WHERE workload = $workload AND superseded_at IS NULL
    UNION ALL
    SELECT id FROM account_decisions WHERE (workload = $workload OR workload IS NULL) AND superseded_at IS NULL
)

-- name: account_decisions
-- Decisions in force about accounts, for one workload or for all, latest first.
SELECT user_id AS account, workload, action, reason, author, decided_at
FROM account_decisions
WHERE superseded_at IS NULL AND action <> 'release' AND ($workload IS NULL OR workload IS NULL OR workload = $workload)
ORDER BY decided_at DESC, user_id

-- name: found
-- The rows of feedback: from events in the warehouse, else from datasets. `approves`: whether it approves of an answer; null
-- if it neither approves nor rejects one.
SELECT feedback_id, workload, interaction_id, user_id, accepted, approves, place = 0 AS is_event
FROM (
    SELECT f.id AS feedback_id, i.workload, i.id AS interaction_id, f.name <> 'correction' AS accepted, 0 AS place,
           f.name = 'correction' OR approves(f.name, f.value) AS approves,
           CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS user_id
    FROM feedback f JOIN interactions i ON i.id = f.interaction_id
    WHERE list_contains($ids, f.id) AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
    UNION ALL BY NAME
    SELECT r.feedback_id, d.workload, r.interaction_id, false AS accepted, 1 AS place, true AS approves, NULL AS user_id
    FROM dataset_rows r JOIN datasets d ON d.version = r.dataset_version
    WHERE list_contains($ids, r.feedback_id)
)
QUALIFY row_number() OVER (PARTITION BY feedback_id ORDER BY place, workload) = 1

-- name: archived
-- The datasets that hold rows of feedback that is no longer in the warehouse, newest first.
SELECT d.path, r.split, list(r.feedback_id) AS ids
FROM dataset_rows r
JOIN datasets d ON d.version = r.dataset_version AND d.workload = $workload AND d.removed_at IS NULL
WHERE list_contains($ids, r.feedback_id) AND r.split IN ('train', 'holdout', 'regression')
  AND r.feedback_id NOT IN (
      SELECT f.id FROM feedback f JOIN interactions i ON i.id = f.interaction_id WHERE list_contains($ids, f.id)
  )
GROUP BY d.created_at, d.version, d.path, r.split
ORDER BY d.created_at DESC, d.version, r.split

-- name: in_force
-- The decision in force for a row, or for the answer that it accepts.
SELECT id, action, answer, reason, author FROM row_decisions
WHERE workload = $workload AND superseded_at IS NULL AND action <> 'release'
  AND (feedback_id = $feedback_id OR (accepted AND $accepted AND interaction_id = $interaction_id))

-- name: answer
-- The answer that feedback approves, rejects or gives, as it is stored.
SELECT CASE WHEN f.name = 'correction' THEN coalesce(f.value ->> '$.content', f.value ->> '$') ELSE i.response END AS answer
FROM feedback f JOIN interactions i ON i.id = f.interaction_id
WHERE f.id = $id

-- name: supersede_row
UPDATE row_decisions SET superseded_at = $now
WHERE workload = $workload AND superseded_at IS NULL
  AND (feedback_id = $feedback_id OR (accepted AND $accepted AND interaction_id = $interaction_id))

-- name: account_in_force
SELECT action, reason, author FROM account_decisions
WHERE workload IS NOT DISTINCT FROM $workload AND user_id = $account AND superseded_at IS NULL AND action <> 'release'

-- name: supersede_account
UPDATE account_decisions SET superseded_at = $now
WHERE workload IS NOT DISTINCT FROM $workload AND user_id = $account AND superseded_at IS NULL

-- name: known_account
SELECT 1 AS found FROM interactions WHERE user_id = $account
UNION ALL SELECT 1 FROM feedback WHERE user_id = $account
UNION ALL SELECT 1 FROM row_states WHERE user_id = $account
UNION ALL SELECT 1 FROM account_decisions WHERE user_id = $account
LIMIT 1

-- name: kept_interactions
-- Interactions that a person wants taught. Retention keeps them in the warehouse.
SELECT interaction_id FROM row_decisions
WHERE workload = $workload AND superseded_at IS NULL AND action IN ('keep', 'pin', 'edit')
