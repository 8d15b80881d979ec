-- name: promoted
SELECT max(created_at) AS since FROM aliases
WHERE workload = $workload AND alias = 'champion' AND created_at <= $now

-- name: began
-- The first event after which a reference would hold enough, so that a few events with wrong times or of an old import do not
-- matter; otherwise the first event. Counted in 64ths of a reference, in whole minutes.
WITH minutes AS (
    SELECT minute, answers, first_at FROM answer_minutes
    WHERE workload = $workload AND NOT demonstration AND minute < date_trunc('minute', $now::TIMESTAMP)
    UNION ALL  -- the current minute
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
-- The number of conversations in a span. With $since, only recurring hours count: $length microseconds from then on, shifted
-- by whole periods. An event without a conversation counts as one.
SELECT count(DISTINCT hash(coalesce(conversation_id, id))) AS conversations
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)

-- name: has_some
-- The number of conversations among any $events events of a span.
SELECT count(DISTINCT hash(coalesce(conversation_id, id))) AS conversations
FROM (
    SELECT conversation_id, id FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
    LIMIT $events
)

-- name: choose
-- One event of each conversation, because events of a conversation are not independent. Conversations and events are chosen by
-- the lowest hash, which gives the same sample for the same seed regardless of DuckDB's threads. Only conversations in the
-- lowest $parts of 128 parts of the hash range are considered.
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
-- A separate statement, so that DuckDB reads only the texts of the chosen rows.
SELECT * FROM interactions WHERE rowid IN (SELECT answer FROM chosen)
