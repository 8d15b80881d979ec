-- name: watched
-- Of each workload the latest change of champion, if it is a promotion of what the gate passed, approved or not, or the last step of a
-- rollout: what a person promotes by hand is not undone by itself. A canary before it has had half of the error.
SELECT id, workload, created_at AS since, version, previous_version,
       experiment IN (SELECT experiment FROM promotions WHERE event = 'canary') AS after_canary
FROM (
    SELECT * FROM promotions WHERE list_contains($workloads, workload) AND event IN ('promoted', 'rolled_back')
    QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC, rowid DESC) = 1
)
WHERE event = 'promoted' AND (actor IN ('gate', 'approver') OR experiment IS NOT NULL)

-- name: latest
SELECT * FROM watch_checks
WHERE list_contains($workloads, workload)
QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC, rowid DESC) = 1

-- name: history
-- How many votes there are on answers of the champion before, by days before the promotion, and since when. A narrow
-- table, within the time that may be compared with.
SELECT name, source, ceil(epoch_us($since - answered_at) / 86400e6)::INTEGER AS days_before, count(*) AS votes,
       min(answered_at) AS first
FROM judgements
WHERE workload = $workload AND answered_at >= $start AND answered_at < $since AND name IN ('helpful', 'hallucination')
  AND NOT demonstration
  AND version_of($workload, model) = $previous
GROUP BY ALL

-- name: votes
-- Of each metric and source, what the version that is watched and the champion before came to. With periods the latter is
-- that of $periods periods before the promotion, each answer and each vote as many whole periods later as bring the
-- answer into the first period of the watch; without, that of the time since the promotion.
WITH placed AS (
    SELECT name, source, unit, version = $version AS after, value = (name = 'hallucination') AS bad, answered_at, voted_at,
           CASE WHEN version = $version OR $periods = 0 THEN INTERVAL 0 SECOND
                ELSE to_microseconds((ceil(epoch_us($since - answered_at) / epoch_us($period)) * epoch_us($period))::BIGINT)
           END AS later
    FROM comparable_votes
    WHERE CASE WHEN version = $version OR $periods = 0 THEN version IN ($version, $previous) AND answered_at >= $since
               ELSE version = $previous AND answered_at < $since AND answered_at >= $since - $period * $periods END
), units AS (
    SELECT name, source, after, unit, avg(bad::INTEGER) AS known,
           avg(bad::INTEGER) FILTER (
               voted_at + later <= $end
               AND (NOT after OR $periods = 0 OR answered_at < $since + $longest OR answered_at <= $end - $within)
           ) AS bad
    FROM placed
    GROUP BY ALL
)
SELECT name, source, coalesce(sum(bad) FILTER (NOT after), 0) AS bad_before, count(bad) FILTER (NOT after) AS n_before,
       coalesce(sum(bad) FILTER (after), 0) AS bad_after, count(bad) FILTER (after) AS n_after,
       coalesce(sum(known) FILTER (NOT after), 0) AS bad_known, count(*) FILTER (NOT after) AS known
FROM units
GROUP BY ALL
ORDER BY ALL

-- name: answers
-- How many answers each gave.
WITH answered AS (
    SELECT version_of($workload, model) AS version
    FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
)
SELECT count(*) FILTER (version = $previous), count(*) FILTER (version = $version) FROM answered

-- name: latency
-- Hours, and the sum of the shares of their answers that were slow. Slow is what nine in ten answers of the champion before,
-- of the day before the promotion, were not; since then what is slower than that by more than the ratio. The same time
-- counts where the champion before answered in half of the hours.
WITH timed AS (  -- of answers whose content came in a log record: see the window of quality.sql
    SELECT interaction_id, any_value(TRY_CAST(value AS DOUBLE)) AS seconds
    FROM feedback
    WHERE name = 'latency_seconds' AND source = 'app' AND timestamp >= $start - INTERVAL 1 DAY
    GROUP BY interaction_id
), answered AS (
    SELECT timestamp, coalesce(latency_seconds, seconds) AS seconds,
           version_of($workload, model) AS version
    FROM traffic LEFT JOIN timed ON interaction_id = id
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
), known AS (
    SELECT version = $version AS after, timestamp >= $since AS watched, timestamp, seconds
    FROM answered
    WHERE isfinite(seconds) AND seconds >= 0
      AND CASE WHEN version = $version THEN timestamp >= $warm
               ELSE version = $previous AND (timestamp < $since OR timestamp >= $warm) END
), usual AS (
    SELECT quantile_disc(seconds, 0.9) AS slow FROM known WHERE NOT after AND NOT watched
), hours AS (
    SELECT after, watched, time_bucket(INTERVAL 1 HOUR, timestamp) AS hour,
           avg((CASE WHEN after OR watched THEN seconds > slow * $ratio ELSE seconds >= slow END)::INTEGER) AS bad
    FROM known, usual
    WHERE slow IS NOT NULL
    GROUP BY ALL
), counted AS (
    SELECT coalesce(sum(bad) FILTER (after), 0) AS bad_after, count(*) FILTER (after) AS n_after,
           coalesce(sum(bad) FILTER (NOT after AND NOT watched), 0) AS bad_before,
           count(*) FILTER (NOT after AND NOT watched) AS n_before,
           coalesce(sum(bad) FILTER (NOT after AND watched), 0) AS bad_beside,
           count(*) FILTER (NOT after AND watched) AS n_beside
    FROM hours
)
SELECT false AS same_time, bad_before, n_before, bad_after, n_after FROM counted WHERE n_before > 0
UNION ALL
SELECT true, bad_beside, n_beside, bad_after, n_after FROM counted WHERE n_beside > 0 AND 2 * n_beside >= n_after

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
