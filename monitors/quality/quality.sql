-- name: answered
-- The models that answered in the current window, with sums over their answers; reads only the summed columns.
CREATE OR REPLACE TEMP TABLE answered AS
SELECT model AS given, model, count(*) AS answers,
       count(input_tokens) AS inputs, sum(input_tokens::DOUBLE) AS input_tokens,
       sum(input_tokens::DOUBLE * input_tokens) AS input_squares,
       count(output_tokens) AS outputs, sum(output_tokens::DOUBLE) AS output_tokens,
       sum(output_tokens::DOUBLE * output_tokens) AS output_squares
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
GROUP BY model

-- name: counted
SELECT coalesce(model, '*') AS model, sum(answers)::BIGINT AS answers
FROM answered GROUP BY GROUPING SETS ((model), ()) HAVING sum(answers) > 0

-- name: busiest
-- The models with figures of their own. Producers may send a new model name with each event.
CREATE OR REPLACE TEMP TABLE busiest AS
SELECT given AS model FROM answered WHERE given NOT IN ('*', 'other')
ORDER BY answers DESC, given LIMIT $most

-- name: name_others
UPDATE answered SET model = 'other' WHERE given NOT IN (FROM busiest)

-- name: votes
-- Votes of each model and of all models, for `rates.votes.read_votes`.
CREATE OR REPLACE TEMP TABLE arm_votes AS
SELECT name, source, unnest(['*', CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END]) AS part,
       false AS after, unit, 0 AS block, value AS yes
FROM comparable_votes

-- name: timed
-- Latencies that came as feedback of the app: OpenTelemetry sends the content in a log record, the latency in a span.
CREATE OR REPLACE TEMP TABLE timed AS
SELECT interaction_id, any_value(TRY_CAST(value AS DOUBLE)) AS seconds
FROM feedback
WHERE name = 'latency_seconds' AND source = 'app' AND timestamp >= $start - INTERVAL 1 DAY
GROUP BY interaction_id

-- name: timed_answers
-- The number of answers of each model with a latency. Reads ids only of answers without a latency of their own.
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
-- Latencies at ranks, given as shares of all, without sorting or copying them.
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
-- The latest answers drawn at random for labelling, of models that answer now, with the experts' last label.
CREATE OR REPLACE TEMP TABLE labels AS
WITH labelled AS (
    SELECT interaction_id, arg_max(value::VARCHAR, timestamp) AS value, max(timestamp) AS labelled_at
    FROM feedback
    WHERE name = 'hallucination' AND source = 'expert' AND timestamp >= $since AND value::VARCHAR IN ('true', 'false')
      AND NOT is_banned($workload, source, user_id, NULL)
    GROUP BY interaction_id
), drawn AS (
    SELECT interaction_id FROM label_requests
    WHERE workload = $workload AND reason = 'calibration' AND alarm IS NOT NULL
)
SELECT id, timestamp, CASE WHEN model IN (FROM busiest) THEN model ELSE 'other' END AS model, value = 'true' AS invented
FROM labelled JOIN traffic ON traffic.id = labelled.interaction_id
WHERE workload = $workload AND traffic.model IN (SELECT given FROM answered) AND id IN (FROM drawn)
ORDER BY labelled_at DESC, id
LIMIT $most

-- name: unscored
-- Sampled and labelled answers with passages that the grounding scorer has not judged.
WITH wanted AS (
    SELECT id, timestamp FROM sampled_answers WHERE id IN (SELECT unnest($with_passages::VARCHAR[]))
    UNION
    SELECT id, timestamp FROM labels
)
FROM wanted WHERE id NOT IN (SELECT interaction_id FROM groundings WHERE workload = $workload AND method = 'values')

-- name: texts
-- Constant bounds let DuckDB skip whole row groups.
SELECT id, timestamp, messages, response, context
FROM traffic JOIN (SELECT unnest($ids::VARCHAR[]) AS id, unnest($times::TIMESTAMP[]) AS timestamp) USING (id, timestamp)
WHERE workload = $workload AND timestamp BETWEEN $first AND $last
ORDER BY hash(id)

-- name: replace_groundings
-- Results of an older version.
DELETE FROM groundings
WHERE (workload, interaction_id) IN (SELECT (one.workload, one.interaction_id) FROM (SELECT unnest($rows) AS one))

-- name: keep_groundings
INSERT INTO groundings BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: grounding
SELECT
    coalesce(s.model, '*') AS model, count(*) AS n, count(*) FILTER (g.abstained IS NOT NULL) AS abstained,
    count(*) FILTER (g.alarm) AS alarms
FROM sampled_answers s JOIN groundings g ON g.interaction_id = s.id AND g.workload = $workload AND g.method = 'values'
WHERE g.abstained IS DISTINCT FROM 'no_words'
GROUP BY GROUPING SETS ((s.model), ())
HAVING count(*) > 0
ORDER BY ALL

-- name: strata
-- For each model and all models: alarms and other answers of the sample, and the labels in each of the two strata.
WITH counted AS (
    SELECT coalesce(s.model, '*') AS model, t.alarm, count(*) AS size
    FROM sampled_answers s JOIN grounding_strata t ON t.interaction_id = s.id AND t.workload = $workload
    GROUP BY GROUPING SETS ((s.model, t.alarm), (t.alarm))
), labelled AS (
    SELECT coalesce(l.model, '*') AS model, t.alarm, count(*) AS labelled, count(*) FILTER (l.invented) AS invented
    FROM labels l JOIN grounding_strata t ON t.interaction_id = l.id AND t.workload = $workload
    GROUP BY GROUPING SETS ((l.model, t.alarm), (t.alarm))
)
SELECT model, alarm, size, coalesce(labelled, 0) AS labelled, coalesce(invented, 0) AS invented
FROM counted LEFT JOIN labelled USING (model, alarm)
ORDER BY ALL

-- name: undetected
-- Answers that this model has not judged: labelled ones, then sampled ones in random order, and after all others those at
-- which it was interrupted.
WITH wanted AS (
    SELECT id, timestamp, 0 AS place FROM labels
    UNION ALL
    SELECT id, timestamp, 1 FROM sampled_answers
    WHERE id IN (SELECT unnest($with_passages::VARCHAR[])) AND id NOT IN (SELECT id FROM labels)
), tried AS (
    SELECT interaction_id, abstained FROM detections WHERE workload = $workload AND scorer = $scorer AND model = $model
)
SELECT id, timestamp FROM wanted LEFT JOIN tried ON interaction_id = id
WHERE interaction_id IS NULL OR abstained = 'interrupted'
ORDER BY abstained IS NOT NULL, place, hash(id, $seed)
LIMIT $most

-- name: replace_detections
-- A new model replaces the results of the one before.
DELETE FROM detections
WHERE (scorer, interaction_id) IN (SELECT (one.scorer, one.interaction_id) FROM (SELECT unnest($rows) AS one))

-- name: keep_detections
INSERT INTO detections BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: detected
SELECT count(*) AS n, count(*) FILTER (d.alarm) AS alarms
FROM sampled_answers s JOIN detections d
    ON d.interaction_id = s.id AND d.workload = $workload AND d.scorer = $scorer AND d.model = $model
WHERE d.abstained IS NULL
HAVING count(*) > 0

-- name: approved
-- The latest corrections, and answers before the window that all votes call helpful: those with a judgement since
-- $judged_since, by all judgements since $since.
WITH judged AS (
    SELECT interaction_id, answered_at, name, value, timestamp, feedback_id FROM judgements
    WHERE workload = $workload AND NOT demonstration AND name IN ('correction', 'helpful') AND source IN ('expert', 'user')
      AND timestamp >= $since AND NOT is_banned($workload, source, user_id, asker_id)
), lately AS (
    SELECT DISTINCT interaction_id FROM judgements
    WHERE workload = $workload AND NOT demonstration AND name IN ('correction', 'helpful') AND source IN ('expert', 'user')
      AND timestamp >= $judged_since
), answers AS (
    SELECT interaction_id, answered_at, arg_max(feedback_id, timestamp) FILTER (name = 'correction') AS correction,
           bool_and(value) FILTER (name = 'helpful') AS helpful, max(timestamp) AS judged_at
    FROM judged SEMI JOIN lately USING (interaction_id)
    GROUP BY interaction_id, answered_at
)
SELECT interaction_id, answered_at, correction
FROM answers
WHERE correction IS NOT NULL OR (helpful AND answered_at < $window_start)
ORDER BY judged_at DESC, interaction_id
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

-- name: ahead
-- Measurements that were made while the clock was ahead.
DELETE FROM quality WHERE workload = $workload AND created_at > $now

-- name: latest
-- `since`: the beginning of the window; null: an older release measured it.
WITH measured AS (
    SELECT q.workload, max(q.created_at) AS created_at, max(a.created_at) AS promoted_at
    FROM quality q LEFT JOIN aliases a ON a.workload = q.workload AND a.alias = 'champion'
    WHERE list_contains($workloads::VARCHAR[], q.workload)
    GROUP BY q.workload
)
SELECT workload, metric, source, model, value, low, high, n, created_at, created_at - to_microseconds((
           max(value) FILTER (metric = 'window_seconds') OVER (PARTITION BY workload) * 1_000_000
       )::BIGINT) AS since
FROM quality JOIN measured USING (workload, created_at)
WHERE created_at >= coalesce(promoted_at, created_at)
ORDER BY metric, source, model

-- name: thin
-- Keeps the last measurement of each hour before $recent, and of each day before $old.
DELETE FROM quality
WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND created_at < $recent
  AND (workload, created_at) NOT IN (
    SELECT workload, max(created_at) FROM quality
    WHERE created_at < $recent
    GROUP BY workload, CASE WHEN created_at < $old THEN date_trunc('day', created_at) ELSE date_trunc('hour', created_at) END
  )

-- name: thin_groundings
-- Keeps results of labelled answers; all others belong to former samples.
DELETE FROM groundings
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at < $old AND interaction_id NOT IN (SELECT interaction_id FROM feedback WHERE name = 'hallucination')

-- name: thin_detections
DELETE FROM detections
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at < $old AND interaction_id NOT IN (SELECT interaction_id FROM feedback WHERE name = 'hallucination')
