-- name: queue
-- Open requests, the oldest first, with what experts did with each. $workloads null: of all.
SELECT r.id, r.interaction_id, r.workload, r.reason, coalesce(w.work, []) AS work
FROM label_requests r
LEFT JOIN (
    SELECT request_id, list({
        'expert': expert, 'state': state, 'since': since, 'name': name, 'value': value, 'sent': sent, 'comment': comment
    }) AS work
    FROM label_work GROUP BY request_id
) w ON w.request_id = r.id
WHERE r.answered_at IS NULL AND ($workloads IS NULL OR list_contains($workloads::VARCHAR[], r.workload))
    AND EXISTS (FROM interactions i WHERE i.id = r.interaction_id AND i.workload = r.workload)
ORDER BY r.created_at, r.score DESC NULLS LAST, r.id
LIMIT 2_000

-- name: questions
SELECT id, last_question(messages) AS question
FROM interactions WHERE id IN (SELECT unnest($ids::VARCHAR[]))

-- name: progress
-- Answers of each expert since $since. $workloads null: to requests of all.
SELECT w.expert, count(*) AS answers FROM label_work w
JOIN label_requests r ON r.id = w.request_id
WHERE w.state = 'answered' AND w.since >= $since
    AND ($workloads IS NULL OR list_contains($workloads::VARCHAR[], r.workload))
GROUP BY w.expert
ORDER BY answers DESC, w.expert

-- name: mine
-- The latest answers of an expert, or that to one request, and the state of the row that each became: of its own feedback,
-- else of that which answered the request, unless the expert has changed the answer since. $workloads null: of all.
SELECT r.id, w.since, w.name, w.value, w.comment, r.workload, r.reason AS asked_for,
       last_question(i.messages) AS question,
       i.response, s.state, s.reason, s.dataset_version, m.version
FROM label_work w
JOIN label_requests r ON r.id = w.request_id
JOIN interactions i ON i.id = r.interaction_id AND i.workload = r.workload
LEFT JOIN row_states own ON own.feedback_id = md5(concat_ws(' ', r.id, w.expert, epoch_us(w.since)))
LEFT JOIN row_states s ON s.feedback_id = coalesce(own.feedback_id, CASE WHEN w.since <= r.answered_at THEN r.feedback_id END)
LEFT JOIN models m ON m.workload = r.workload AND m.dataset_version = s.dataset_version
WHERE w.expert = $expert AND w.state = 'answered' AND ($id IS NULL OR r.id = $id)
    AND ($workloads IS NULL OR list_contains($workloads::VARCHAR[], r.workload))
ORDER BY w.since DESC
LIMIT 50

-- name: about
-- A request, or those about an interaction, the open ones first, with what experts did with each.
SELECT r.id, r.interaction_id, r.workload, r.reason, r.answered_at IS NULL AS open, i.response,
       i.attributes -> '$.tool_calls' AS calls, coalesce(
    list({
        'expert': w.expert, 'state': w.state, 'since': w.since, 'name': w.name, 'value': w.value, 'sent': w.sent,
        'comment': w.comment
    }) FILTER (w.request_id IS NOT NULL), []
) AS work
FROM label_requests r
JOIN interactions i ON i.id = r.interaction_id AND i.workload = r.workload
LEFT JOIN label_work w ON w.request_id = r.id
WHERE r.id = $id OR r.interaction_id = $id
GROUP BY ALL
ORDER BY open DESC, min(r.created_at)

-- name: write
-- An answer replaces all; a claim and a skip never replace an answer.
INSERT INTO label_work VALUES ($request, $expert, $state, $since, $name, $value, $sent, $comment)
ON CONFLICT DO UPDATE SET
    state = excluded.state,
    since = excluded.since,
    name = excluded.name,
    value = excluded.value,
    sent = excluded.sent,
    comment = excluded.comment
WHERE excluded.state = 'answered' OR label_work.state <> 'answered'

-- name: withdraw
-- A correction is never taught, unless a person has decided about it.
INSERT INTO row_decisions BY NAME
SELECT $id AS id, $workload AS workload, $feedback AS feedback_id, $interaction AS interaction_id, false AS accepted,
       'drop' AS action, $reason AS reason, $author AS author, $now AS decided_at
WHERE NOT EXISTS (
    FROM row_decisions
    WHERE workload = $workload AND feedback_id = $feedback AND superseded_at IS NULL AND action <> 'release'
)
