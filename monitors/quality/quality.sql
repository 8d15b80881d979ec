-- name: window
-- What figures are made of: the interactions of the current window, without their texts. Of an answer whose content came
-- in a log record of OpenTelemetry, the latency comes with the span beside it, as feedback of the app.
CREATE OR REPLACE TEMP TABLE answered AS
WITH timed AS (
    SELECT interaction_id, any_value(TRY_CAST(value AS DOUBLE)) AS seconds
    FROM feedback
    WHERE name = 'latency_seconds' AND source = 'app' AND timestamp >= $start - INTERVAL 1 DAY
    GROUP BY interaction_id
)
SELECT id, model AS given, model, coalesce(latency_seconds, seconds) AS latency_seconds, input_tokens, output_tokens
FROM traffic LEFT JOIN timed ON interaction_id = id
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end

-- name: busiest
-- The models that have figures of their own. Names come from producers, which may send a new one with each event.
CREATE OR REPLACE TEMP TABLE busiest AS
SELECT given AS model FROM answered WHERE given NOT IN ('*', 'other')
GROUP BY given ORDER BY count(*) DESC, given LIMIT $most

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

-- name: latency
-- Quantiles with their distribution-free intervals: the order statistics around the rank (Conover 1999, 3.2).
WITH sorted AS (
    SELECT coalesce(model, '*') AS model, list_sort(list(latency_seconds)) AS latencies, count(*) AS n
    FROM answered
    WHERE isfinite(latency_seconds) AND latency_seconds >= 0
    GROUP BY GROUPING SETS ((model), ())
), ranks AS (
    SELECT model, latencies, n, quantile, ceil(n * quantile) AS rank, 1.96 * sqrt(n * quantile * (1 - quantile)) AS reach
    FROM sorted, (VALUES (0.5), (0.95), (0.99)) quantiles (quantile)
    WHERE n > 0
)
SELECT
    model, quantile, n,
    latencies[rank::BIGINT] AS value,
    latencies[greatest(1, floor(n * quantile - reach))::BIGINT] AS low,
    latencies[least(n, ceil(n * quantile + reach))::BIGINT] AS high
FROM ranks
ORDER BY ALL

-- name: tokens
SELECT
    coalesce(model, '*') AS model, kind, count(tokens) AS n, avg(tokens::DOUBLE) AS mean,
    coalesce(1.96 * stddev_samp(tokens) / sqrt(count(tokens)), 0.0) AS half
FROM (
    SELECT model, 'input_tokens' AS kind, input_tokens AS tokens FROM answered
    UNION ALL
    SELECT model, 'output_tokens' AS kind, output_tokens AS tokens FROM answered
)
WHERE tokens IS NOT NULL
GROUP BY GROUPING SETS ((model, kind), (kind))
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
SELECT id, CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END AS model, value = 'true' AS invented,
       by_expert AND id IN (SELECT interaction_id FROM drawn) AS requested
FROM labelled JOIN traffic ON traffic.id = labelled.interaction_id
WHERE workload = $workload AND traffic.model IN (SELECT given FROM answered) AND coalesce(json_array_length(context), 0) > 0
ORDER BY requested DESC, labelled_at DESC, id
LIMIT $most

-- name: unscored
-- Sampled and labelled answers with passages that the grounding rules have not looked at.
SELECT id, messages, response, context FROM sampled_answers
WHERE coalesce(json_array_length(context), 0) > 0
    AND id NOT IN (SELECT interaction_id FROM groundings WHERE workload = $workload)
UNION
SELECT id, messages, response, context FROM traffic
WHERE workload = $workload
    AND id IN (SELECT id FROM labels WHERE id NOT IN (SELECT interaction_id FROM groundings WHERE workload = $workload))
ORDER BY hash(id)

-- name: keep_groundings
INSERT INTO groundings BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: grounding
SELECT
    coalesce(s.model, '*') AS model, count(*) AS n, count(*) FILTER (g.abstained IS NOT NULL) AS abstained,
    count(*) FILTER (g.score < $threshold) AS alarms
FROM (SELECT id, CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END AS model FROM sampled_answers) s
JOIN groundings g ON g.interaction_id = s.id AND g.workload = $workload
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
SELECT s.id, messages, response, context, coalesce(g.score < 1, false) AS doubtful
FROM sampled_answers s LEFT JOIN groundings g ON g.interaction_id = s.id AND g.workload = $workload
WHERE coalesce(json_array_length(context), 0) > 0
ORDER BY hash(s.id, $seed)

-- name: approved
-- How people want answers to be: the latest corrections, and answers of before the window that everybody found helpful.
WITH answers AS MATERIALIZED (
    SELECT rowid AS answer, id, timestamp FROM interactions WHERE workload = $workload AND model <> 'demonstration'
), words AS (
    SELECT
        interaction_id,
        arg_max(value, timestamp) FILTER (name = 'correction') AS correction,
        bool_and(value::VARCHAR = 'true') FILTER (name = 'helpful') AS helpful,
        max(timestamp) AS said_at
    FROM feedback
    WHERE name IN ('correction', 'helpful') AND source IN ('expert', 'user') AND timestamp >= $since
        AND interaction_id IN (SELECT id FROM answers)
    GROUP BY interaction_id
), latest AS MATERIALIZED (
    SELECT answer, id, correction, said_at
    FROM words JOIN answers ON answers.id = words.interaction_id
    WHERE correction IS NOT NULL OR (helpful AND answers.timestamp < $start)
    ORDER BY said_at DESC, id
    LIMIT $most
)
-- The texts of these alone are read.
SELECT coalesce(correction, to_json(response)) AS answer
FROM latest JOIN interactions ON interactions.rowid = latest.answer
ORDER BY said_at DESC, latest.id

-- name: asked
SELECT CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END AS model, messages, context, response
FROM sampled_answers
ORDER BY id

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
