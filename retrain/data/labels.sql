-- name: newest
-- The newest answers of the champion.
CREATE OR REPLACE TEMP TABLE newest AS
SELECT id, timestamp, messages, response, context, attributes -> '$.tools' AS tools,
    attributes -> '$.tool_calls' AS calls
FROM traffic
WHERE workload = $workload
    AND timestamp >= coalesce(
        (SELECT created_at FROM aliases WHERE workload = $workload AND alias = 'champion'), TIMESTAMP '1970-01-01'
    )
ORDER BY timestamp DESC, id
LIMIT $limit

-- name: span
SELECT min(timestamp) AS start, max(timestamp) + INTERVAL 1 MICROSECOND AS end FROM newest

-- name: candidates
-- The newest answers with the numbers of good and bad votes on each, and whether it is settled (by a correction, an
-- expert's feedback or an earlier request). Five votes per account, so that one account does not fill the queue.
WITH counted AS (
    FROM comparable_votes
    QUALIFY account IS NULL OR row_number() OVER (
        PARTITION BY account, name, source ORDER BY voted_at, answered_at, interaction_id
    ) <= 5
), voted AS (
    SELECT interaction_id, count(*) FILTER (name = 'helpful' AND value) AS good,
        count(*) FILTER (value = (name = 'hallucination')) AS bad
    FROM counted
    GROUP BY interaction_id
)
SELECT
    newest.*, coalesce(good, 0) AS good, coalesce(bad, 0) AS bad,
    id IN (
        SELECT interaction_id FROM judgements
        WHERE workload = $workload AND (name = 'correction' OR (name = 'helpful' AND source = 'expert'))
    ) OR id IN (SELECT interaction_id FROM label_requests WHERE workload = $workload) AS settled
FROM newest LEFT JOIN voted ON voted.interaction_id = newest.id
ORDER BY timestamp DESC, id

-- name: known
-- Questions that need no request: requests that are open or newer than the champion, and corrections newer than its dataset.
WITH champion AS (
    SELECT max(a.created_at) AS promoted_at,
           max(coalesce(try_cast(d.card ->> 'evidence_until' AS TIMESTAMP), d.created_at)) AS learned_until
    FROM aliases a
    LEFT JOIN models m ON m.workload = a.workload AND m.version = a.version
    LEFT JOIN datasets d ON d.workload = a.workload AND d.version = m.dataset_version
    WHERE a.workload = $workload AND a.alias = 'champion'
)
SELECT i.id, i.timestamp, i.messages, i.response, i.context, i.attributes -> '$.tools' AS tools,
    i.attributes -> '$.tool_calls' AS calls
FROM interactions i, champion
WHERE i.workload = $workload AND (
    i.id IN (
        SELECT interaction_id FROM label_requests, champion
        WHERE workload = $workload AND (answered_at IS NULL OR promoted_at IS NULL OR label_requests.created_at >= promoted_at)
    )
    OR i.id IN (
        SELECT interaction_id FROM feedback, champion
        WHERE name = 'correction' AND (learned_until IS NULL OR received_at > learned_until)
    )
)
ORDER BY i.timestamp DESC, i.id
LIMIT $limit

-- name: strata
-- The strata of calibration, alarms and other answers of the champion: how many can be drawn, how many have a label since
-- $since, and how many of these labels are inventions.
WITH asked AS (
    SELECT r.interaction_id, r.alarm, arg_max(f.value::VARCHAR, f.timestamp) = 'true' AS invented
    FROM label_requests r
    LEFT JOIN feedback f
        ON f.interaction_id = r.interaction_id AND f.name = 'hallucination' AND f.source = 'expert' AND f.timestamp >= $since
    WHERE r.workload = $workload AND r.reason = 'calibration' AND r.created_at >= $since AND r.alarm IS NOT NULL
        AND r.created_at >= coalesce(
            (SELECT created_at FROM aliases WHERE workload = $workload AND alias = 'champion'), TIMESTAMP '1970-01-01'
        )
    GROUP BY r.interaction_id, r.alarm
), candidates AS (
    SELECT alarm, count(*) AS size FROM calibration_candidates WHERE workload = $workload GROUP BY alarm
), labelled AS (
    SELECT alarm, count(*) AS labelled, count(*) FILTER (invented) AS invented FROM asked GROUP BY alarm
)
SELECT alarm, coalesce(size, 0) AS size, coalesce(labelled, 0) AS labelled, coalesce(invented, 0) AS invented
FROM candidates FULL JOIN labelled USING (alarm)
ORDER BY alarm

-- name: draw
-- A random sample of the champion's recent alarms and other answers, with the probability of each. Answers that were drawn
-- before are left out. Answers with another request or a label are not: they are part of their stratum.
SELECT interaction_id, alarm, CASE WHEN alarm THEN $alarms ELSE $others END / count(*) OVER (PARTITION BY alarm) AS probability
FROM calibration_candidates
WHERE workload = $workload
QUALIFY row_number() OVER (PARTITION BY alarm ORDER BY md5(interaction_id || $seed))
    <= CASE WHEN alarm THEN $alarms ELSE $others END
ORDER BY interaction_id

-- name: conflicts
-- Two answers to one question if it is unknown whether they mean the same or which one is right: one pair per question,
-- those with the most waiting rows first. Rows with a request or a decision of a person are left out.
WITH open_ones AS (
    SELECT f.interaction_id, r.feedback_id AS first_feedback_id, r.other_feedback_id AS second_feedback_id,
           count(*) OVER (PARTITION BY r.other_feedback_id) AS waiting
    FROM row_states r
    JOIN feedback f ON f.id = r.feedback_id
    JOIN interactions i ON i.id = f.interaction_id
    JOIN feedback o ON o.id = r.other_feedback_id
    JOIN interactions oi ON oi.id = o.interaction_id
    WHERE r.workload = $workload AND r.state = 'waiting'
        AND f.interaction_id NOT IN (SELECT interaction_id FROM label_requests WHERE workload = $workload)
        AND r.other_feedback_id NOT IN (
            SELECT second_feedback_id FROM label_requests WHERE workload = $workload AND second_feedback_id IS NOT NULL
        )
        AND NOT EXISTS (
            FROM row_decisions d
            WHERE d.superseded_at IS NULL AND d.action <> 'release' AND d.feedback_id IN (r.feedback_id, r.other_feedback_id)
        )
    QUALIFY row_number() OVER (PARTITION BY r.other_feedback_id ORDER BY f.timestamp DESC, f.id) = 1
)
SELECT interaction_id, first_feedback_id, second_feedback_id FROM open_ones
ORDER BY waiting DESC, second_feedback_id
LIMIT $most

-- name: asked
-- Requests since $since, by reason, and the time of the first one.
SELECT count(*) AS requests, count(*) FILTER (reason = 'calibration') AS calibration, count(*) FILTER (reason = 'conflict') AS conflict,
       min(created_at) AS first_at
FROM label_requests
WHERE workload = $workload AND created_at > $since

-- name: oldest_open
SELECT min(created_at) AS created_at FROM label_requests WHERE answered_at IS NULL

-- name: settle
-- An expert's correction or verdict answers a request; `hallucination` answers one of calibration, `same` or a correction
-- one of a conflict. The first answer counts. Answers come after requests, so feedback since the oldest open one is enough.
-- The interaction of a conflict may have feedback already, so its answer came after the request or has the id of an answer
-- in the console (`teach.feedback_id`): the clock of the member that received it may be behind.
UPDATE label_requests SET answered_at = answer.received_at, feedback_id = answer.id
FROM (
    SELECT r.id AS request_id, min(f.received_at) AS received_at, arg_min(f.id, f.received_at) AS id
    FROM label_requests r
    JOIN feedback f ON f.interaction_id = r.interaction_id AND list_contains(CASE r.reason
        WHEN 'calibration' THEN ['hallucination']
        WHEN 'conflict' THEN ['correction', 'same']
        ELSE ['correction', 'helpful']
    END, f.name)
    WHERE r.answered_at IS NULL AND f.source = 'expert' AND f.received_at >= $since
        AND (
            r.reason <> 'conflict'
            OR (f.received_at > r.created_at AND f.id NOT IN (r.first_feedback_id, r.second_feedback_id))
            OR f.id IN (
                SELECT md5(concat_ws(' ', w.request_id, w.expert, epoch_us(w.since)))
                FROM label_work w WHERE w.request_id = r.id
            )
        )
    GROUP BY r.id
) answer
WHERE label_requests.id = answer.request_id

-- name: open
-- Open requests, or the one with this id even if it is answered. Their interaction is not archived: feedback on an archived
-- one would teach nothing. The two answers of a conflict are the arguments of `exam.shown`.
SELECT r.id, r.created_at, r.workload, r.interaction_id, i.model, i.messages, i.response, i.context,
    i.attributes -> '$.tools' AS tools, i.attributes -> '$.tool_calls' AS calls, r.reason, r.detail, r.score,
    CASE WHEN r.reason = 'conflict' THEN [
        {'correction': CASE WHEN a.name = 'correction' THEN a.value END, 'response': i.response,
         'calls': i.attributes -> '$.tool_calls'},
        {'correction': CASE WHEN o.name = 'correction' THEN o.value END, 'response': oi.response,
         'calls': oi.attributes -> '$.tool_calls'}
    ] END AS answers
FROM label_requests r
JOIN interactions i ON i.id = r.interaction_id AND i.workload = r.workload
LEFT JOIN feedback a ON a.id = r.first_feedback_id
LEFT JOIN feedback o ON o.id = r.second_feedback_id
LEFT JOIN interactions oi ON oi.id = o.interaction_id
WHERE ($workload IS NULL OR r.workload = $workload) AND (NOT $pending OR NOT r.announced)
    AND CASE WHEN $id IS NULL THEN r.answered_at IS NULL ELSE r.id = $id END
ORDER BY r.created_at, r.score DESC NULLS LAST, r.id

-- name: announced
UPDATE label_requests SET announced = true WHERE id = $id

-- name: counts
SELECT r.workload,
       count(*) FILTER (r.answered_at IS NULL AND i.id IS NOT NULL) AS open,
       count(*) FILTER (r.answered_at IS NOT NULL) AS answered
FROM label_requests r LEFT JOIN interactions i ON i.id = r.interaction_id AND i.workload = r.workload
GROUP BY r.workload
ORDER BY r.workload

-- name: forget
-- Requests whose interaction is archived. Others are kept, so that no answer is requested twice.
DELETE FROM label_requests
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at < $old AND interaction_id NOT IN (SELECT id FROM interactions)

-- name: forget_work
DELETE FROM label_work WHERE request_id NOT IN (SELECT id FROM label_requests)
