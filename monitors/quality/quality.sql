-- name: answered
-- The models that answered in the current window, with sums over their answers; nothing is read but what is summed.
CREATE OR REPLACE TEMP TABLE answered AS
SELECT model AS given, model, count(*) AS answers,
       count(input_tokens) AS inputs, sum(input_tokens::DOUBLE) AS input_tokens,
       sum(input_tokens::DOUBLE * input_tokens) AS input_squares,
       count(output_tokens) AS outputs, sum(output_tokens::DOUBLE) AS output_tokens,
       sum(output_tokens::DOUBLE * output_tokens) AS output_squares
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
GROUP BY model

-- name: busiest
-- The models that have figures of their own. Names come from producers, which may send a new one with each event.
CREATE OR REPLACE TEMP TABLE busiest AS
SELECT given AS model FROM answered WHERE given NOT IN ('*', 'other')
ORDER BY answers DESC, given LIMIT $most

-- name: name_others
UPDATE answered SET model = 'other' WHERE given NOT IN (FROM busiest)

-- name: votes
-- How many units (accounts, else conversations) have so many votes with yes of so many, of each model and of all.
WITH units AS (
    SELECT name, source, unit, count(*) FILTER (value) AS yes, count(*) AS n,
           coalesce(CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END, '*') AS model
    FROM comparable_votes
    GROUP BY GROUPING SETS ((name, source, unit, CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END), (name, source, unit))
)
SELECT name, source, model, yes, n, count(*) AS units
FROM units
GROUP BY ALL
ORDER BY ALL

-- name: timed
-- Of an answer whose content came in a log record of OpenTelemetry, the latency comes with the span beside it, as feedback
-- of the app.
CREATE OR REPLACE TEMP TABLE timed AS
SELECT interaction_id, any_value(TRY_CAST(value AS DOUBLE)) AS seconds
FROM feedback
WHERE name = 'latency_seconds' AND source = 'app' AND timestamp >= $start - INTERVAL 1 DAY
GROUP BY interaction_id

-- name: timed_answers
-- How many answers of each model have a latency. Ids are read of those alone that have none of their own.
WITH known AS (
    SELECT model AS given, latency_seconds AS seconds FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end AND latency_seconds IS NOT NULL
    UNION ALL
    SELECT model, seconds FROM traffic JOIN timed ON interaction_id = id
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end AND latency_seconds IS NULL
), counted AS (
    SELECT given, count(*) AS n FROM known WHERE isfinite(seconds) AND seconds >= 0 GROUP BY given
)
SELECT model, sum(n)::BIGINT FROM counted JOIN answered USING (given) GROUP BY model

-- name: latencies
-- Latencies by their ranks, given as shares of all. Nothing is sorted, and none is copied.
WITH known AS (
    SELECT model AS given, latency_seconds AS seconds FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end AND latency_seconds IS NOT NULL
    UNION ALL
    SELECT model, seconds FROM traffic JOIN timed ON interaction_id = id
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end AND latency_seconds IS NULL
)
SELECT quantile_disc(seconds, $ranks::DOUBLE[]) FROM known
WHERE isfinite(seconds) AND seconds >= 0
  AND ($model IS NULL OR given IN (SELECT given FROM answered WHERE model = $model))

-- name: tokens
WITH sums AS (
    SELECT model, 'input_tokens' AS kind, inputs AS n, input_tokens AS tokens, input_squares AS squares FROM answered
    UNION ALL
    SELECT model, 'output_tokens', outputs, output_tokens, output_squares FROM answered
), summed AS (
    SELECT coalesce(model, '*') AS model, kind, sum(n)::BIGINT AS n, sum(tokens) AS tokens, sum(squares) AS squares
    FROM sums
    WHERE n > 0
    GROUP BY GROUPING SETS ((model, kind), (kind))
)
SELECT model, kind, n, tokens / n AS mean,
       CASE WHEN n > 1 THEN 1.96 * sqrt(greatest(squares - tokens * tokens / n, 0) / (n - 1) / n) ELSE 0.0 END AS half
FROM summed
ORDER BY ALL

-- name: labels
-- The latest answers with passages that people judged, of the models that answer now: one label each, the last word of
-- an expert before a user's. Requested: drawn at random to be labelled.
CREATE OR REPLACE TEMP TABLE labels AS
WITH labelled AS (
    SELECT
        interaction_id,
        coalesce(
            arg_max(value::VARCHAR, timestamp) FILTER (source = 'expert'),
            arg_max(value::VARCHAR, timestamp) FILTER (source = 'user')
        ) AS value,
        bool_or(source = 'expert') AS by_expert,
        max(timestamp) AS labelled_at
    FROM feedback
    WHERE name = 'hallucination' AND source IN ('expert', 'user') AND timestamp >= $since
        AND value::VARCHAR IN ('true', 'false')
    GROUP BY interaction_id
), drawn AS (
    SELECT interaction_id FROM label_requests WHERE workload = $workload AND reason = 'calibration'
)
SELECT id, timestamp, CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END AS model, value = 'true' AS invented,
       by_expert AND id IN (SELECT interaction_id FROM drawn) AS requested
FROM labelled JOIN traffic ON traffic.id = labelled.interaction_id
WHERE workload = $workload AND traffic.model IN (SELECT given FROM answered) AND coalesce(json_array_length(context), 0) > 0
ORDER BY requested DESC, labelled_at DESC, id
LIMIT $most

-- name: unscored
-- Sampled and labelled answers with passages that the grounding rules have not looked at.
WITH wanted AS (
    SELECT id, timestamp FROM sampled_answers WHERE id IN (SELECT unnest($with_passages::VARCHAR[]))
    UNION
    SELECT id, timestamp FROM labels
)
FROM wanted WHERE id NOT IN (SELECT interaction_id FROM groundings WHERE workload = $workload)

-- name: texts
-- The bounds are constants: whole row groups are skipped by them.
SELECT id, timestamp, messages, response, context
FROM traffic JOIN (SELECT unnest($ids::VARCHAR[]) AS id, unnest($times::TIMESTAMP[]) AS timestamp) USING (id, timestamp)
WHERE workload = $workload AND timestamp BETWEEN $first AND $last
ORDER BY hash(id)

-- name: keep_groundings
INSERT INTO groundings BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: grounding
SELECT
    coalesce(s.model, '*') AS model, count(*) AS n, count(*) FILTER (g.abstained IS NOT NULL) AS abstained,
    count(*) FILTER (g.score < $threshold) AS alarms
FROM sampled_answers s JOIN groundings g ON g.interaction_id = s.id AND g.workload = $workload
WHERE g.abstained IS DISTINCT FROM 'no_words'
GROUP BY GROUPING SETS ((s.model), ())
HAVING count(*) > 0
ORDER BY ALL

-- name: calibration
-- Labels by model, of alarms and of other answers; those that were drawn at random to be labelled apart.
SELECT coalesce(l.model, '*') AS model, g.score < $threshold AS alarm, requested, count(*) AS labelled,
       count(*) FILTER (invented) AS invented
FROM labels l JOIN groundings g ON g.interaction_id = l.id AND g.workload = $workload
WHERE g.score IS NOT NULL
GROUP BY GROUPING SETS ((l.model, g.score < $threshold, requested), (g.score < $threshold, requested))
ORDER BY ALL

-- name: shown
SELECT s.id, s.timestamp, coalesce(g.score < 1, false) AS doubtful
FROM sampled_answers s LEFT JOIN groundings g ON g.interaction_id = s.id AND g.workload = $workload
WHERE s.id IN (SELECT unnest($with_passages::VARCHAR[]))
ORDER BY hash(s.id, $seed)

-- name: approved
-- How people want answers to be: the latest corrections, and answers of before the window that everybody found helpful.
-- Those of which somebody said something since $said_since; all that was said of them since $since counts.
WITH said AS (
    SELECT interaction_id, answered_at, name, value, timestamp, feedback_id FROM judgements
    WHERE workload = $workload AND NOT demonstration AND name IN ('correction', 'helpful') AND source IN ('expert', 'user')
      AND timestamp >= $since
), lately AS (
    SELECT DISTINCT interaction_id FROM judgements
    WHERE workload = $workload AND NOT demonstration AND name IN ('correction', 'helpful') AND source IN ('expert', 'user')
      AND timestamp >= $said_since
), answers AS (
    SELECT interaction_id, answered_at, arg_max(feedback_id, timestamp) FILTER (name = 'correction') AS correction,
           bool_and(value) FILTER (name = 'helpful') AS helpful, max(timestamp) AS said_at
    FROM said SEMI JOIN lately USING (interaction_id)
    GROUP BY interaction_id, answered_at
)
SELECT interaction_id, answered_at, correction
FROM answers
WHERE correction IS NOT NULL OR (helpful AND answered_at < $window_start)
ORDER BY said_at DESC, interaction_id
LIMIT $most

-- name: corrections
SELECT id, value FROM feedback
WHERE name = 'correction' AND timestamp >= $since AND id IN (SELECT unnest($ids::VARCHAR[]))

-- name: name_sampled
UPDATE sampled_answers SET model = 'other' WHERE model NOT IN (FROM busiest)

-- name: sampled
SELECT id, timestamp, model FROM sampled_answers ORDER BY id, timestamp

-- name: store
INSERT INTO quality BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: latest
SELECT workload, model, metric, source, value, low, high, n
FROM quality
WHERE workload = $workload AND created_at = (SELECT max(created_at) FROM quality WHERE workload = $workload)
ORDER BY model, metric, source

-- name: thin
-- Of what is older than $recent the last measurement of each hour stays, of what is older than $old that of each day.
DELETE FROM quality
WHERE created_at < $recent
  AND (workload, created_at) NOT IN (
    SELECT workload, max(created_at) FROM quality
    WHERE created_at < $recent
    GROUP BY workload, CASE WHEN created_at < $old THEN date_trunc('day', created_at) ELSE date_trunc('hour', created_at) END
  )

-- name: thin_groundings
-- Those of labelled answers stay; the others are of samples that have passed.
DELETE FROM groundings
WHERE created_at < $old AND interaction_id NOT IN (SELECT interaction_id FROM feedback WHERE name = 'hallucination')
