-- name: watched
-- The change that made the champion of each workload, if the gate (with or without approval) or the last step of a rollout made
-- it: a promotion by hand is never rolled back automatically. Nor is one that replaced a version with erased rows, which must
-- not serve again. A canary before it has used half of the error. The champion is looked up, because a change that was stored
-- while the clock was ahead can have a later time than the change that made the champion.
SELECT id, workload, created_at AS since, version, previous_version,
       experiment IN (SELECT experiment FROM promotions WHERE event = 'canary') AS after_canary
FROM (
    SELECT promotions.* FROM promotions JOIN aliases ON aliases.workload = promotions.workload AND alias = 'champion'
        AND aliases.version IS NOT DISTINCT FROM promotions.version
    WHERE list_contains($workloads, promotions.workload) AND event IN ('promoted', 'rolled_back')
    QUALIFY row_number() OVER (PARTITION BY promotions.workload ORDER BY promotions.created_at DESC, promotions.rowid DESC) = 1
) AS change
WHERE event = 'promoted' AND (actor IN ('gate', 'approver') OR experiment IS NOT NULL)
  AND NOT EXISTS (  -- the base model, which has no version, has no erased rows
      FROM erased_versions e WHERE e.workload = change.workload AND e.version = change.previous_version
  )

-- name: latest
-- Of one promotion, or of all.
SELECT * FROM watch_checks
WHERE list_contains($workloads, workload) AND promotion_id = coalesce($promotion, promotion_id)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC, rowid DESC) = 1

-- name: history
-- Votes on answers of the former champion, by days before the promotion, with the time of the first answer. As in
-- `comparable_votes`, those of banned accounts do not count.
SELECT name, source, ceil(epoch_us($since - answered_at) / 86400e6)::INTEGER AS days_before,
       count(*) FILTER (value = (name = 'hallucination')) AS bad, count(*) AS votes, min(answered_at) AS first
FROM judgements
WHERE workload = $workload AND answered_at >= $start AND answered_at < $since AND name IN ('helpful', 'hallucination')
  AND NOT demonstration AND NOT is_banned($workload, source, user_id, asker_id)
  AND version_of($workload, regexp_replace(model, '\+cascade$', '')) = $previous
GROUP BY ALL

-- name: votes
-- Votes on answers of the watched version and the former champion; a block is a day. With $periods the former champion's
-- answers are those of that many periods before the promotion; answers and votes are shifted by whole periods, so that the
-- answer falls into the first period of the watch. Without, they are those since the promotion. The part `known` has all
-- votes, the part `stood` those that had arrived when the answer was as old as its counterpart is now.
CREATE OR REPLACE TEMP TABLE arm_votes AS
WITH placed AS (
    SELECT name, source, unit, version = $version AS after, value = (name = 'hallucination') AS yes, answered_at, voted_at,
           CASE WHEN version = $version OR $periods = 0 THEN INTERVAL 0 SECOND
                ELSE to_microseconds((ceil(epoch_us($since - answered_at) / epoch_us($period)) * epoch_us($period))::BIGINT)
           END AS later
    FROM comparable_votes
    WHERE CASE WHEN version = $version OR $periods = 0 THEN version IN ($version, $previous) AND answered_at >= $since
               ELSE version = $previous AND answered_at < $since AND answered_at >= $since - $period * $periods END
), parts AS (
    SELECT *, voted_at + later <= $end AND (
               NOT after OR $periods = 0 OR answered_at < $since + $longest OR answered_at <= $end - $within
           ) AS stood
    FROM placed
)
SELECT name, source, unnest(CASE WHEN stood THEN ['known', 'stood'] ELSE ['known'] END) AS part, after, unit,
       floor(epoch_us(answered_at - $since) / 86400e6)::INTEGER AS block, yes
FROM parts

-- name: answers
-- The number of answers of the former champion and of the watched version.
WITH answered AS (
    SELECT version_of($workload, regexp_replace(model, '\+cascade$', '')) AS version
    FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
)
SELECT count(*) FILTER (version = $previous), count(*) FILTER (version = $version) FROM answered

-- name: latency
-- The number of hours, and the sum over hours of the share of slow answers. Before the promotion, slow means at or above the
-- 90th percentile of the former champion's answers of the last day; afterwards, above this percentile times the ratio.
WITH timed AS (  -- see `timed` in quality.sql
    SELECT interaction_id, any_value(TRY_CAST(value AS DOUBLE)) AS seconds
    FROM feedback
    WHERE name = 'latency_seconds' AND source = 'app' AND timestamp >= $start - INTERVAL 1 DAY
    GROUP BY interaction_id
), answered AS (
    SELECT timestamp, coalesce(latency_seconds, seconds) AS seconds,
           version_of($workload, regexp_replace(model, '\+cascade$', '')) AS version
    FROM traffic LEFT JOIN timed ON interaction_id = id
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
), known AS (
    SELECT version = $version AS after, timestamp >= $since AS watched, timestamp, seconds
    FROM answered
    WHERE isfinite(seconds) AND seconds >= 0
      AND CASE WHEN version = $version THEN timestamp >= $warm
               ELSE version = $previous AND (timestamp < $since OR timestamp >= $warm) END
), usual AS (
    SELECT quantile_disc(seconds, 0.9) AS slow FROM known WHERE NOT watched
), hours AS (
    SELECT after, watched, time_bucket(INTERVAL 1 HOUR, timestamp) AS hour,
           avg((CASE WHEN watched THEN seconds > slow * $ratio ELSE seconds >= slow END)::INTEGER) AS bad
    FROM known, usual
    WHERE slow IS NOT NULL
    GROUP BY ALL
), counted AS (
    SELECT coalesce(sum(bad) FILTER (after), 0) AS bad_after, count(*) FILTER (after) AS n_after,
           coalesce(sum(bad) FILTER (NOT watched), 0) AS bad_before,
           count(*) FILTER (NOT watched) AS n_before,
           coalesce(sum(bad) FILTER (watched AND NOT after), 0) AS bad_beside,
           count(*) FILTER (watched AND NOT after) AS n_beside
    FROM hours
)
SELECT false AS same_time, bad_before, n_before, bad_after, n_after FROM counted WHERE n_before > 0
UNION ALL
SELECT true, bad_beside, n_beside, bad_after, n_after FROM counted WHERE n_beside > 0

-- name: thin
-- Of the checks without a decision, keeps the last of each hour before $recent, and of each watch before $old.
DELETE FROM watch_checks
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
  AND created_at < $recent AND verdict = 'go_on'
  AND (promotion_id, created_at) NOT IN (
    SELECT promotion_id, max(created_at) FROM watch_checks
    WHERE created_at < $recent
    GROUP BY promotion_id, CASE WHEN created_at >= $old THEN date_trunc('hour', created_at) END
  )
