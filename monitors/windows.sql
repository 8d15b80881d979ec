-- name: promoted
SELECT max(created_at) AS since FROM aliases
WHERE workload = $workload AND alias = 'champion' AND created_at <= $now

-- name: began
-- The first event from which on a reference would hold enough: a few with wrong times, or of an old import, do not move
-- it. Where none does, the first event. Counted in 64ths of a reference, in whole minutes.
WITH minutes AS (
    SELECT minute, answers, first_at FROM answer_minutes
    WHERE workload = $workload AND NOT demonstration AND minute < date_trunc('minute', $now::TIMESTAMP)
    UNION ALL  -- the minute under way
    SELECT date_trunc('minute', timestamp), 1, timestamp FROM traffic
    WHERE workload = $workload AND timestamp >= date_trunc('minute', $now::TIMESTAMP) AND timestamp < $now
), counted AS (
    SELECT epoch_us(minute) // 60_000_000 // $minutes AS bucket, sum(answers) AS rows, min(first_at) AS first
    FROM minutes
    GROUP BY bucket
), followed AS (
    SELECT first, sum(rows) OVER (ORDER BY bucket RANGE BETWEEN CURRENT ROW AND $following FOLLOWING) AS rows FROM counted
)
SELECT coalesce(min(first) FILTER (rows >= $enough), min(first)) AS since FROM followed

-- name: nth_latest
SELECT timestamp
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $now
ORDER BY timestamp DESC
LIMIT 1 OFFSET $skip

-- name: count
-- Conversations of a span; with $since, only of those hours: $length microseconds from then on, and whole periods before
-- and after. An event without a conversation is one by itself.
SELECT count(DISTINCT hash(coalesce(conversation_id, id))) AS conversations
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)

-- name: has_some
-- Conversations among some events of a span, whichever they are.
SELECT count(DISTINCT hash(coalesce(conversation_id, id))) AS conversations
FROM (
    SELECT conversation_id, id FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
    LIMIT $events
)

-- name: choose
-- One event of each conversation: those of one conversation are alike, and are no independent observations. Both are
-- chosen by the lowest hash: the same for the same seed, whatever DuckDB's threads do, and a filter that is applied
-- before the sampling. Of the conversations, so many 128ths with the lowest hashes are looked at.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT arg_min(rowid, hash(id, $seed)) AS answer
FROM interactions
WHERE workload = $workload AND model <> 'demonstration' AND timestamp >= $start AND timestamp < $end
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)
  AND hash(coalesce(conversation_id, id), $seed) >> 57 < $parts
GROUP BY coalesce(conversation_id, id)
ORDER BY hash(coalesce(conversation_id, id), $seed)
LIMIT $rows

-- name: chosen
-- A statement of its own: so the texts of the chosen alone are read.
SELECT * FROM interactions WHERE rowid IN (SELECT answer FROM chosen)
