-- The state of each row in the last dataset, and the rows that wait for the next one.

-- name: against
-- The last dataset.
SELECT arg_max(dataset_version, decided_at) AS version FROM row_states WHERE workload = $workload

-- name: before
SELECT feedback_id, state FROM row_states

-- name: known
-- The beginning of the queries below: the rows of a workload with their states. Feedback since the last dataset waits:
-- corrections, and the last vote of each account for each answer.
WITH decided AS (
    SELECT max(decided_at) AS decided_at FROM row_states WHERE workload = $workload
), last AS (
    SELECT f.id AS feedback_id, f.interaction_id, f.source, f.name, f.value, greatest(f.received_at, i.received_at) AS received_at,
           CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS user_id
    FROM feedback f JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND (f.name = 'correction' OR approves(f.name, f.value) IS NOT NULL)
    QUALIFY f.name = 'correction'
        OR row_number() OVER (
            PARTITION BY f.interaction_id, coalesce(f.user_id, i.user_id, f.id), f.name = 'correction'
            ORDER BY f.timestamp DESC, f.id
        ) = 1
), late AS (
    SELECT * FROM last
    WHERE (name = 'correction' OR approves(name, value)
           OR feedback_id IN (SELECT feedback_id FROM row_decisions
                              WHERE workload = $workload AND superseded_at IS NULL AND action = 'edit'))
        AND received_at > coalesce((SELECT decided_at FROM decided), TIMESTAMP '1970-01-01')
        AND feedback_id NOT IN (SELECT feedback_id FROM row_states WHERE workload = $workload)
), known AS (
    SELECT state, reason, detail, feedback_id, interaction_id, user_id, dataset_version, decided_at FROM row_states
    WHERE workload = $workload
    UNION ALL BY NAME
    SELECT 'waiting' AS state, 'not_decided' AS reason,
           CASE WHEN (SELECT decided_at FROM decided) IS NULL THEN 'no dataset has been made yet'
                ELSE 'it came after the last dataset' END AS detail,
           feedback_id, interaction_id, user_id
    FROM late
)

-- name: counts
-- Of the rows in each state, for each reason.
SELECT state, reason, count(*) AS rows FROM known GROUP BY ALL ORDER BY ALL

-- name: interactions
-- What feedback is about.
SELECT feedback_id, interaction_id FROM known WHERE feedback_id IN (SELECT unnest($ids::VARCHAR[]))

-- name: listed
-- Rows with the decision of a person in force, without their texts.
SELECT k.state, k.reason, k.detail, NULL AS question, NULL AS answer, f.source, k.user_id AS account, k.feedback_id, k.interaction_id, f.timestamp, k.dataset_version,
       CASE WHEN d.id IS NOT NULL THEN {
           'action': d.action, 'answer': d.answer, 'reason': d.reason, 'author': d.author, 'decided_at': d.decided_at,
           'followed': coalesce(d.decided_at <= k.decided_at, false)
       } END AS decision
FROM known k
LEFT JOIN feedback f ON f.id = k.feedback_id
LEFT JOIN row_decisions d ON d.workload = $workload AND d.superseded_at IS NULL AND d.action <> 'release'
    AND (d.feedback_id = k.feedback_id OR (d.accepted AND f.name <> 'correction' AND d.interaction_id = k.interaction_id))
WHERE ($state IS NULL OR k.state = $state) AND ($reason IS NULL OR k.reason = $reason)
    AND ($ids::VARCHAR[] IS NULL OR k.feedback_id IN (SELECT unnest($ids::VARCHAR[])))
ORDER BY k.state, k.reason, f.timestamp DESC, k.feedback_id
LIMIT $limit OFFSET $skipped

-- name: texts
-- Question and answer of rows.
SELECT k.feedback_id,
       last_question(i.messages) AS question,
       CASE WHEN f.name = 'correction' THEN coalesce(f.value ->> '$.content', f.value ->> '$') ELSE i.response END AS answer
FROM (SELECT unnest($feedback::VARCHAR[]) AS feedback_id, unnest($interactions::VARCHAR[]) AS interaction_id) k
LEFT JOIN feedback f ON f.id = k.feedback_id
LEFT JOIN interactions i ON i.id = k.interaction_id
