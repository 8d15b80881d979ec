-- name: answered
-- By rule: answers of the current window that the incumbent gave by rule, all answers, and the cost of one.
WITH window_answers AS (
    SELECT sum(answers)::BIGINT AS total, count(*) FILTER (regexp_matches(given, '[@+]cascade$')) AS models FROM answered
)
SELECT coalesce(attributes ->> '$.cascade', '') AS rule, count(*), any_value(total), count(cost), avg(cost), stddev_samp(cost)
FROM traffic, window_answers
WHERE models > 0 AND workload = $workload AND timestamp >= $start AND timestamp < $end
    AND regexp_matches(model, '[@+]cascade$')
GROUP BY rule
ORDER BY rule

-- name: votes
CREATE OR REPLACE TEMP TABLE arm_votes AS
SELECT name, source, '' AS part, false AS after, unit, 0 AS block, value AS yes
FROM comparable_votes
WHERE name = 'helpful' AND regexp_matches(model, '[@+]cascade$')

-- name: versions
-- The versions that answer in the current window, and since when they have been in service.
SELECT given, min(created_at) AS served_since
FROM answered JOIN promotions ON workload = $workload AND version = version_of($workload, given)
WHERE contains(given, '@') AND NOT regexp_matches(given, '@base$|[@+]cascade$')
GROUP BY given
ORDER BY any_value(answers) DESC, given

-- name: thresholds
SELECT model, arg_max(value, created_at), arg_max(n, created_at) FROM quality
WHERE workload = $workload AND metric = 'least_confidence' AND source = $source AND model IN (SELECT given FROM answered)
GROUP BY model

-- name: labels
-- Votes on answers of a model whose confidence is known.
SELECT source, try_cast(attributes ->> '$.confidence' AS DOUBLE) AS confidence, unit, value
FROM comparable_votes JOIN (SELECT id, timestamp, attributes FROM traffic WHERE timestamp >= $since) ON id = interaction_id
WHERE name = 'helpful' AND source IN ('user', 'expert') AND confidence IS NOT NULL AND model = $model
ORDER BY voted_at, interaction_id
