-- name: newest
-- The newest answers of the model in service.
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
-- The newest answers, with how many votes call each good and bad, and whether it is known what is right (a correction, an
-- expert's word, an earlier request).
WITH voted AS (
    SELECT interaction_id, count(*) FILTER (name = 'helpful' AND value) AS good,
        count(*) FILTER (value = (name = 'hallucination')) AS bad
    FROM comparable_votes
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
-- Questions that need no request: asked of experts and open, or since the champion came; corrected since what it learned.
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

-- name: draw
-- Of either kind, alarms of the grounding rules and other answers, a random part of those that the model in service gave
-- and the rules judged lately; of each the chance that it had. Not those that were asked about. Those that somebody
-- labelled unasked are not left out: they are a part of their kind.
WITH open_ones AS (
    SELECT g.interaction_id, g.alarm
    FROM groundings g JOIN traffic t ON t.id = g.interaction_id AND t.workload = g.workload
    WHERE g.workload = $workload AND g.alarm IS NOT NULL
        AND t.timestamp >= coalesce(
            (SELECT created_at FROM aliases WHERE workload = $workload AND alias = 'champion'), TIMESTAMP '1970-01-01'
        )
        AND g.interaction_id NOT IN (SELECT interaction_id FROM label_requests WHERE workload = $workload)
), asked AS (
    SELECT g.alarm, count(*) AS requests
    FROM label_requests r JOIN groundings g ON g.interaction_id = r.interaction_id AND g.workload = r.workload
    WHERE r.workload = $workload AND r.reason = 'calibration' AND r.created_at >= $since
    GROUP BY g.alarm
), ranked AS (
    SELECT
        interaction_id, alarm, count(*) OVER (PARTITION BY alarm) AS size, coalesce(requests, 0) AS requests,
        row_number() OVER (PARTITION BY alarm ORDER BY md5(interaction_id || $seed)) AS place
    FROM open_ones LEFT JOIN asked USING (alarm)
), drawn AS (
    SELECT interaction_id, alarm, size FROM ranked
    WHERE requests + place <= $enough
    ORDER BY requests + place, alarm DESC
    LIMIT $most
)
SELECT interaction_id, count(*) OVER (PARTITION BY alarm) / size AS probability
FROM drawn
ORDER BY interaction_id

-- name: asked
SELECT count(*) AS requests, count(*) FILTER (reason = 'calibration') AS drawn
FROM label_requests
WHERE workload = $workload AND created_at > $since

-- name: oldest_open
SELECT min(created_at) AS created_at FROM label_requests WHERE answered_at IS NULL

-- name: settle
-- An expert's correction or verdict answers a request, that of calibration `hallucination`; the first one counts. What was answered before is not asked, so
-- that what was received since the oldest request is enough.
UPDATE label_requests SET answered_at = answer.received_at, feedback_id = answer.id
FROM (
    SELECT interaction_id, min(received_at) AS received_at, arg_min(id, received_at) AS id
    FROM feedback
    WHERE source = 'expert' AND received_at >= $since
        AND (interaction_id, name = 'hallucination') IN (
            SELECT (interaction_id, reason = 'calibration') FROM label_requests WHERE answered_at IS NULL
        )
        AND name IN ('correction', 'helpful', 'hallucination')
    GROUP BY interaction_id
) answer
WHERE label_requests.answered_at IS NULL AND label_requests.interaction_id = answer.interaction_id

-- name: open
-- Those whose interaction is still here: an answer to an archived one would teach nothing any more.
SELECT r.id, r.created_at, r.workload, r.interaction_id, i.model, i.messages, i.response, i.context,
    i.attributes -> '$.tools' AS tools, i.attributes -> '$.tool_calls' AS calls, r.reason, r.detail, r.score
FROM label_requests r JOIN interactions i ON i.id = r.interaction_id AND i.workload = r.workload
WHERE r.answered_at IS NULL AND ($workload IS NULL OR r.workload = $workload) AND (NOT $pending OR NOT r.announced)
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
-- Only those whose interaction has left the warehouse: what is there is asked about once.
DELETE FROM label_requests WHERE created_at < $old AND interaction_id NOT IN (SELECT id FROM interactions)
