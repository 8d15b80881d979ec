-- name: days
-- The days with events received on them. Feedback and dead letters have no workload of their own.
SELECT DISTINCT received_at::DATE AS day, table_name, workload
FROM (
    SELECT received_at, 'interactions' AS table_name, workload FROM interactions
    UNION ALL
    SELECT received_at, 'feedback', NULL FROM feedback
    UNION ALL
    SELECT received_at, 'dead_letters', NULL FROM dead_letters
)
WHERE received_at < $before AND table_name IN (SELECT unnest($tables::VARCHAR[]))
ORDER BY day, list_position($tables::VARCHAR[], table_name), workload

-- name: workloads
SELECT DISTINCT workload FROM answer_minutes

-- name: leaving_interactions
-- Interactions of one day and some workloads that may leave. Interactions with newer feedback wait for it.
CREATE OR REPLACE TEMP TABLE leaving AS
SELECT id, timestamp, topic, partition, "offset", received_at
FROM interactions
WHERE received_at >= $day AND received_at < $day + INTERVAL 1 DAY
    AND workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND timestamp < (SELECT max(timestamp) FROM interactions) - to_microseconds($distance)
    AND id NOT IN (SELECT id FROM kept_interactions)
    AND NOT EXISTS (
        SELECT 1 FROM kept_spans AS kept
        WHERE kept.workload = interactions.workload
            AND interactions.timestamp >= kept.start_at AND interactions.timestamp < kept.end_at
    )
    AND id NOT IN (
        SELECT interaction_id FROM feedback
        WHERE received_at >= $before
            OR timestamp >= (SELECT max(timestamp) FROM feedback) - to_microseconds($distance)
    )
LIMIT $rows

-- name: unanswered
-- Whether there is feedback whose interaction is not in the warehouse.
SELECT true FROM feedback WHERE interaction_id NOT IN (SELECT id FROM interactions) LIMIT 1

-- name: answered
-- The archived answers on which there is such feedback, with the day under which they lie.
SELECT id, max(regexp_extract(filename, 'day=([0-9-]+)/', 1))::DATE AS day
FROM read_parquet($archived::VARCHAR[], hive_partitioning = false, union_by_name = true, filename = true)
WHERE id IN (SELECT interaction_id FROM feedback WHERE interaction_id NOT IN (SELECT id FROM interactions))
GROUP BY id

-- name: late_days
SELECT DISTINCT received_at::DATE AS day FROM feedback
WHERE interaction_id IN (SELECT id FROM answered) AND interaction_id NOT IN (SELECT id FROM interactions)
ORDER BY day

-- name: leaving_feedback
-- Feedback of one day whose interaction is not in the warehouse: it was archived earlier, and is joined under its day, or
-- never arrived. Of a day before $before all of it leaves, else that on archived answers.
CREATE OR REPLACE TEMP TABLE leaving AS
SELECT id, timestamp, topic, partition, "offset", received_at,
       coalesce((SELECT day FROM answered WHERE answered.id = feedback.interaction_id), $day) AS filed
FROM feedback
WHERE received_at >= $day AND received_at < $day + INTERVAL 1 DAY
    AND timestamp < (SELECT max(timestamp) FROM feedback) - to_microseconds($distance)
    AND interaction_id NOT IN (SELECT id FROM interactions)
    AND ($day < $before OR interaction_id IN (SELECT id FROM answered))
LIMIT $rows

-- name: filed
SELECT DISTINCT filed FROM leaving ORDER BY filed

-- name: leaving_dead_letters
CREATE OR REPLACE TEMP TABLE leaving AS
SELECT received_at FROM dead_letters
WHERE received_at >= $day AND received_at < $day + INTERVAL 1 DAY
ORDER BY received_at
LIMIT $rows

-- name: interactions
-- Without the number of the transaction, which is local to this warehouse and missing in files of older releases.
SELECT interactions.* EXCLUDE (batch) FROM interactions SEMI JOIN leaving USING (id, timestamp, topic, partition, "offset", received_at)
WHERE received_at >= $day AND received_at < $day + INTERVAL 1 DAY

-- name: feedback_with_interactions
SELECT * EXCLUDE (batch) FROM feedback WHERE interaction_id IN (SELECT id FROM leaving)

-- name: feedback
SELECT feedback.* EXCLUDE (batch)
FROM feedback SEMI JOIN (FROM leaving WHERE filed = $filed) USING (id, timestamp, topic, partition, "offset", received_at)
WHERE received_at >= $day AND received_at < $day + INTERVAL 1 DAY

-- name: dead_letters
-- All letters received at the same time: parts of one message have no key.
SELECT * EXCLUDE (workload) FROM dead_letters WHERE received_at >= $day AND received_at <= (SELECT max(received_at) FROM leaving)

-- name: held
SELECT count(*) AS rows, min(received_at) AS first, max(received_at) AS last FROM read_parquet($file)

-- name: judged
-- The interactions of the archived feedback.
SELECT DISTINCT interaction_id FROM read_parquet($file)

-- name: answered_in
-- Workloads and minutes of the archived interactions.
SELECT DISTINCT workload, date_trunc('minute', timestamp) FROM read_parquet($file, hive_partitioning = false)

-- name: delete_interactions
DELETE FROM interactions USING read_parquet($file, hive_partitioning = false) AS gone
WHERE interactions.received_at BETWEEN $first AND $last  -- constants let DuckDB skip row groups
    AND interactions.id = gone.id AND interactions.timestamp = gone.timestamp
    AND interactions.received_at = gone.received_at AND interactions.topic = gone.topic
    AND interactions.partition = gone.partition AND interactions."offset" = gone."offset"

-- name: delete_feedback
DELETE FROM feedback USING read_parquet($file, hive_partitioning = false) AS gone
WHERE feedback.received_at BETWEEN $first AND $last
    AND feedback.id = gone.id AND feedback.timestamp = gone.timestamp
    AND feedback.received_at = gone.received_at AND feedback.topic = gone.topic
    AND feedback.partition = gone.partition AND feedback."offset" = gone."offset"

-- name: delete_dead_letters
DELETE FROM dead_letters USING read_parquet($file, hive_partitioning = false) AS gone
WHERE dead_letters.received_at BETWEEN $first AND $last
    AND dead_letters.received_at = gone.received_at AND dead_letters.topic = gone.topic
    AND dead_letters.partition = gone.partition AND dead_letters."offset" = gone."offset"

-- name: known_files
SELECT file FROM archives

-- name: archived
-- The content of the archive by table.
SELECT table_name, count(*) AS files, sum(rows)::BIGINT AS rows, sum(bytes)::BIGINT AS bytes,
       max(archived_at) AS last_archived_at
FROM archives
GROUP BY table_name
ORDER BY table_name

-- name: keep_ids
INSERT INTO archived_ids SELECT $table, md5_number_lower(id) FROM read_parquet($file, hive_partitioning = false)
