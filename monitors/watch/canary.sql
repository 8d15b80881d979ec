-- name: canary
-- The rollout that is a canary now, and whether it began in shadow.
SELECT *, id IN (SELECT experiment FROM promotions WHERE event = 'canary' AND share = 0) AS shadowed
FROM rollouts WHERE workload = $workload AND state = 'canary' AND ended_at IS NULL

-- name: steps
-- From when to when the canary had which share, without its shadow; the last step ends now.
SELECT created_at AS since, coalesce(lead(created_at) OVER (ORDER BY created_at, rowid), $now) AS until
FROM promotions
WHERE experiment = $experiment AND event = 'canary' AND share > 0
ORDER BY created_at, rowid

-- name: shadow
SELECT scorer, champion, candidate FROM shadow_scores WHERE experiment = $experiment

-- name: votes
-- Of each metric and source, what the canary and the champion came to in each step: of the answers of that step, whenever
-- the vote came. Who votes in several steps is one observation, of the first one.
WITH steps AS (
    SELECT unnest($steps::TIMESTAMP[]) AS step
), votes AS (
    SELECT name, source, unit, version = $version AS after, value = (name = 'hallucination') AS bad, step
    FROM comparable_votes ASOF JOIN steps ON answered_at >= step
    WHERE version IN ($version, $previous) AND voted_at <= $now
    QUALIFY step = min(step) OVER (PARTITION BY name, source, unit, after)
), units AS (
    SELECT name, source, step, after, unit, avg(bad::INTEGER) AS bad
    FROM votes
    GROUP BY ALL
)
SELECT name, source, coalesce(sum(bad) FILTER (NOT after), 0) AS bad_before, count(*) FILTER (NOT after) AS n_before,
       coalesce(sum(bad) FILTER (after), 0) AS bad_after, count(*) FILTER (after) AS n_after
FROM units
GROUP BY name, source, step
ORDER BY name, source, step

-- name: latest
SELECT * FROM rollout_checks
WHERE list_contains($experiments, experiment)
QUALIFY row_number() OVER (PARTITION BY experiment ORDER BY created_at DESC, rowid DESC) = 1

-- name: thin
-- Of looks before $recent that held the last of each hour stays, of those before $old the last of each step.
DELETE FROM rollout_checks
WHERE created_at < $recent AND verdict = 'hold'
  AND (experiment, created_at) NOT IN (
    SELECT experiment, max(created_at) FROM rollout_checks
    WHERE created_at < $recent
    GROUP BY experiment, step_since, CASE WHEN created_at >= $old THEN date_trunc('hour', created_at) END
  )
