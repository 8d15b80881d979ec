-- name: behind
SELECT p.last_batch AS since, b.last AS until FROM answer_minutes_position p, batches b WHERE p.last_batch <> b.last

-- name: fresh
-- Minutes of interactions stored after $since; before the first update, of all interactions.
CREATE OR REPLACE TEMP TABLE fresh AS
SELECT workload, model = 'demonstration' AS demonstration, date_trunc('minute', timestamp) AS minute, count(*) AS answers,
       min(timestamp) AS first_at
FROM interactions
WHERE batch > $since OR $since < 0
GROUP BY ALL

-- name: add_counted
-- The former counts of these minutes.
INSERT INTO fresh SELECT counted.* FROM answer_minutes AS counted SEMI JOIN fresh USING (workload, demonstration, minute)

-- name: delete_counted
DELETE FROM answer_minutes WHERE (workload, demonstration, minute) IN (SELECT (workload, demonstration, minute) FROM fresh)

-- name: store
INSERT INTO answer_minutes
SELECT workload, demonstration, minute, sum(answers)::BIGINT, min(first_at) FROM fresh GROUP BY ALL ORDER BY minute, workload

-- name: advance
UPDATE answer_minutes_position SET last_batch = $until

-- name: given
CREATE OR REPLACE TEMP TABLE given AS
SELECT DISTINCT unnest($workloads::VARCHAR[]) AS workload, unnest($minutes::TIMESTAMP[]) AS minute

-- name: drop
DELETE FROM answer_minutes WHERE (workload, minute) IN (SELECT (workload, minute) FROM given)

-- name: make
-- Interactions not yet counted are added by the next update.
INSERT INTO answer_minutes
SELECT workload, model = 'demonstration' AS demonstration, date_trunc('minute', timestamp) AS minute, count(*), min(timestamp)
FROM interactions
WHERE timestamp >= $first AND timestamp < $last + INTERVAL 1 MINUTE  -- constants let DuckDB skip row groups
  AND (workload, date_trunc('minute', timestamp)) IN (SELECT (workload, minute) FROM given)
  AND coalesce(batch, 0) <= (SELECT last_batch FROM answer_minutes_position)
GROUP BY ALL
