-- name: canary
-- The current canary, and whether it began in shadow.
SELECT *, id IN (SELECT experiment FROM promotions WHERE event = 'canary' AND share = 0) AS shadowed
FROM rollouts WHERE workload = $workload AND state = 'canary' AND ended_at IS NULL

-- name: steps
-- Start and end of the canary's steps, without its shadow; the last step ends now.
SELECT created_at AS since, coalesce(lead(created_at) OVER (ORDER BY created_at, rowid), $now) AS until
FROM promotions
WHERE experiment = $experiment AND event = 'canary' AND share > 0
ORDER BY created_at, rowid

-- name: shadow
SELECT scorer, champion, candidate FROM shadow_scores WHERE experiment = $experiment

-- name: votes
-- Votes on the answers of the canary and the champion in each step (the block), whenever the vote arrived.
CREATE OR REPLACE TEMP TABLE arm_votes AS
WITH steps AS (
    SELECT unnest($steps::TIMESTAMP[]) AS step
)
SELECT name, source, '' AS part, version = $version AS after, unit, step AS block, value = (name = 'hallucination') AS yes
FROM comparable_votes ASOF JOIN steps ON answered_at >= step
WHERE version IN ($version, $previous) AND voted_at <= $now

-- name: assigned
-- How many conversations (or accounts, as assigned) the gateway assigned to the champion and to the canary, and which got an
-- answer of it. Without an id the first message of the user stands for the conversation, as in the gateway. An answer that
-- another model gave in its place is none, unless that is how a cascade works. The first and the last minute of the time in which
-- the canary was in service do not count: gateways begin a step a little later, and slow answers are still under way.
WITH assigned AS (
    SELECT attributes ->> '$.assignment.arm' = 'canary' AS is_canary,
           coalesce(
               CASE WHEN $unit = 'account' THEN coalesce(user_id, conversation_id) ELSE coalesce(conversation_id, user_id) END,
               list_filter(messages::JSON[], lambda message: message ->> 'role' = 'user')[1]::VARCHAR
           ) AS unit,
           attributes ->> '$.cascade' IS NOT NULL OR version_of($workload, regexp_replace(model, '\+cascade$', '')) = (
               CASE attributes ->> '$.assignment.arm' WHEN 'canary' THEN $version ELSE $previous END
           ) AS is_answered
    FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end::TIMESTAMP - INTERVAL 1 MINUTE
      AND timestamp >= INTERVAL 1 MINUTE + greatest(
          $start::TIMESTAMP, (SELECT max(served_at) FROM deployments WHERE workload = $workload AND version = $version)
      )
      AND attributes ->> '$.assignment.experiment' = $experiment
)
SELECT count(DISTINCT unit) FILTER (NOT is_canary) AS champion, count(DISTINCT unit) FILTER (is_canary) AS canary
FROM assigned WHERE is_answered

-- name: latest
SELECT * FROM rollout_checks
WHERE list_contains($experiments, experiment)
QUALIFY row_number() OVER (PARTITION BY experiment ORDER BY created_at DESC, rowid DESC) = 1

-- name: thin
-- Of the checks that held, keeps the last of each hour before $recent, and of each step before $old.
DELETE FROM rollout_checks
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
  AND created_at < $recent AND verdict = 'hold'
  AND (experiment, created_at) NOT IN (
    SELECT experiment, max(created_at) FROM rollout_checks
    WHERE created_at < $recent
    GROUP BY experiment, step_since, CASE WHEN created_at >= $old THEN date_trunc('hour', created_at) END
  )
