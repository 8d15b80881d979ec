-- name: watched
-- The latest change of champion, if it is a promotion by the gate: what a person decides is not undone by itself.
SELECT id, created_at AS since, version, previous_version
FROM (SELECT * FROM promotions WHERE workload = $workload ORDER BY created_at DESC, rowid DESC LIMIT 1)
WHERE event = 'promoted' AND actor = 'gate'

-- name: latest
SELECT * FROM watch_checks
WHERE workload = $workload
ORDER BY created_at DESC, rowid DESC
LIMIT 1

-- name: answers
-- Answers of the version since its promotion, and those of the champion before it: the latest ones before that, and
-- any that apps still ask it for. An answer under another name than workload@version, or a provider's name of a version,
-- is one of the base model.
CREATE OR REPLACE TEMP TABLE watched_answers AS
WITH timed AS (  -- of answers whose content came in a log record: see the window of quality.sql
    SELECT interaction_id, any_value(TRY_CAST(value AS DOUBLE)) AS seconds
    FROM feedback
    WHERE name = 'latency_seconds' AND source = 'app' AND timestamp >= $start - INTERVAL 1 DAY
    GROUP BY interaction_id
)
SELECT id, timestamp, user_id, coalesce(latency_seconds, seconds) AS latency_seconds, served = $version AS after
FROM (
    SELECT *, CASE WHEN starts_with(model, $workload || '@') THEN model[length($workload) + 2:]
                   ELSE coalesce((
                       SELECT any_value(models.version) FROM models
                       WHERE models.workload = $workload AND models.provider_model = traffic.model
                   ), 'base') END AS served
    FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
) LEFT JOIN timed ON interaction_id = id
WHERE served = $previous OR (served = $version AND timestamp >= $since)

-- name: votes
-- One vote for each interaction, name and source: the last one. An account's first votes on either side count, and
-- no more than the given number: they are no independent observations, and nobody decides alone.
WITH latest AS (
    SELECT interaction_id, name, source, arg_max(value, timestamp) AS value, min(timestamp) AS timestamp,
           arg_max(user_id, timestamp) AS voter
    FROM judgements
    WHERE workload = $workload AND name IN ('helpful', 'hallucination') AND timestamp >= $start - INTERVAL 1 DAY
        AND interaction_id IN (SELECT id FROM watched_answers)
    GROUP BY interaction_id, name, source
), counted AS (
    SELECT after, name, source, value = (name = 'hallucination') AS bad,
           CASE WHEN source = 'user' THEN coalesce(voter, user_id) END AS account
    FROM latest JOIN watched_answers ON watched_answers.id = latest.interaction_id
    QUALIFY account IS NULL
        OR row_number() OVER (PARTITION BY after, name, account ORDER BY latest.timestamp, interaction_id) <= $per_account
)
SELECT name AS metric, source, after, count(*) FILTER (bad) AS bad, count(*) AS n
FROM counted
GROUP BY ALL

-- name: latency
-- Slow is what nine in ten answers of the champion before, until the promotion, were not; of the version in service,
-- what is slower than that by more than the ratio.
WITH known AS (
    SELECT after, timestamp, latency_seconds FROM watched_answers
    WHERE isfinite(latency_seconds) AND latency_seconds >= 0
), usual AS (
    SELECT quantile_disc(latency_seconds, 0.9) AS slow FROM known WHERE NOT after AND timestamp < $since
)
SELECT 'latency' AS metric, 'app' AS source, after,
       count(*) FILTER (CASE WHEN after THEN latency_seconds > slow * $ratio ELSE latency_seconds >= slow END) AS bad,
       count(*) AS n
FROM known, usual
WHERE slow IS NOT NULL
GROUP BY after

-- name: thin
-- Of looks before $recent that decided nothing the last of each hour stays, of those before $old the last of each watch.
DELETE FROM watch_checks
WHERE created_at < $recent AND verdict = 'go_on'
  AND (promotion_id, created_at) NOT IN (
    SELECT promotion_id, max(created_at) FROM watch_checks
    WHERE created_at < $recent
    GROUP BY promotion_id, CASE WHEN created_at >= $old THEN date_trunc('hour', created_at) END
  )
  AND (workload, created_at) NOT IN (SELECT workload, max(created_at) FROM watch_checks GROUP BY workload)
