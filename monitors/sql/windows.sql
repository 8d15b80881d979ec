-- name: anchor
-- Where the reference begins: the champion's promotion, or the first event.
SELECT coalesce(
    (SELECT max(created_at) FROM aliases WHERE workload = $workload AND alias = 'champion'),
    (SELECT min(timestamp) FROM traffic WHERE workload = $workload AND timestamp < $now)
) AS anchor

-- name: nth_latest
SELECT timestamp
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $now
ORDER BY timestamp DESC
LIMIT 1 OFFSET $skip

-- name: count
-- Of a span; with $since, only of those hours: $length microseconds from then on, and whole periods before and after.
SELECT count(*) AS rows
FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)

-- name: sample
-- The rows with the lowest hashes: the same rows for the same seed, whatever DuckDB's threads do, and a filter
-- that is applied before the sampling.
SELECT * FROM traffic
WHERE workload = $workload AND timestamp >= $start AND timestamp < $end
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)
ORDER BY hash(id, $seed)
LIMIT $rows
