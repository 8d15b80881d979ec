-- name: stored_offsets
SELECT topic, partition, next_offset FROM offsets;

-- name: stored_identities
SELECT topic, partition, cluster_id, topic_id FROM offsets WHERE cluster_id IS NOT NULL OR topic_id IS NOT NULL;

-- name: stored_key_ids
-- The keys of the stored pseudonyms.
SELECT DISTINCT left(user_id, 4) AS key_id
FROM (SELECT user_id FROM interactions UNION ALL SELECT user_id FROM feedback)
WHERE user_id LIKE '____:%';

-- name: next_batch
UPDATE batches SET last = last + 1 RETURNING last;

-- name: batch_of_segment
-- The number of a segment, after the last batch that the warehouse had before its cluster (1 in a new one). So all daemons count
-- alike, also one that has not followed the segments that have expired.
UPDATE batches SET last = greatest(last + $number - (SELECT number FROM followed_segments), $number + 1) RETURNING last;

-- name: insert_events
-- Here and in the next three queries, {table} is the table of the events.
INSERT INTO {table} SELECT *, $batch FROM batch_events;

-- name: insert_new_events
INSERT INTO {table}
SELECT *, $batch FROM batch_events AS batch
WHERE NOT EXISTS (
    SELECT 1 FROM {table} AS stored
    WHERE stored.id = batch.id
      -- The first bounds are constants, which let DuckDB skip whole row groups.
      AND stored.timestamp BETWEEN $low AND $high
      AND stored.timestamp BETWEEN batch.timestamp - to_microseconds($distance) AND batch.timestamp + to_microseconds($distance)
);

-- name: remembered_since
-- The time since which ids are remembered: a distance before the newest event, or less if there are more than $most ids.
SELECT
    CASE WHEN count(*) < $most THEN max(timestamp) - to_microseconds($distance) ELSE min(timestamp) END AS since,
    count(*) AS ids
FROM (
    SELECT timestamp FROM {table}
    WHERE timestamp >= (SELECT max(timestamp) FROM {table}) - to_microseconds($distance)
    ORDER BY timestamp DESC
    LIMIT $most
);

-- name: remembered_ids
SELECT id FROM {table} WHERE timestamp >= $since;

-- name: insert_dead_letters
INSERT INTO dead_letters SELECT * FROM batch_dead_letters;

-- name: insert_erasure
-- A request; nothing if its message was read before.
INSERT INTO erasures (id, requested_at, requested_by, reason, selection)
VALUES ($id, $requested_at, $requested_by, $reason, $selection)
ON CONFLICT DO NOTHING;

-- name: move_offsets
UPDATE offsets SET
    next_offset = moved.next_offset,
    cluster_id = coalesce(moved.cluster_id, offsets.cluster_id),
    topic_id = coalesce(moved.topic_id, offsets.topic_id)
FROM (
    SELECT
        unnest($topics::VARCHAR[]) AS topic, unnest($partitions::INTEGER[]) AS partition,
        unnest($starts::BIGINT[]) AS start_offset, unnest($nexts::BIGINT[]) AS next_offset,
        unnest($cluster_ids::VARCHAR[]) AS cluster_id, unnest($topic_ids::VARCHAR[]) AS topic_id
) AS moved
WHERE offsets.topic = moved.topic AND offsets.partition = moved.partition AND offsets.next_offset = moved.start_offset;

-- name: followed
SELECT number FROM followed_segments;

-- name: follow_segment
UPDATE followed_segments SET number = $number WHERE number = $number - 1 OR ($expired AND number < $number);

-- name: archived_ids
-- The ids of a batch that are in the archive.
SELECT id FROM batch_ids WHERE md5_number_lower(id) IN (SELECT hash FROM archived_ids WHERE table_name = $table);

-- name: first_offsets
INSERT INTO offsets
SELECT
    unnest($topics::VARCHAR[]), unnest($partitions::INTEGER[]), unnest($nexts::BIGINT[]),
    unnest($cluster_ids::VARCHAR[]), unnest($topic_ids::VARCHAR[]);

-- name: refused_rows
SELECT count(DISTINCT ("partition", "offset")) AS refused FROM dead_letters WHERE topic = $topic;

-- name: newest_dead_letters
SELECT topic, partition, "offset", received_at FROM dead_letters
WHERE $reason IS NULL OR reason = $reason
ORDER BY received_at DESC, topic, partition, "offset" DESC
LIMIT $limit;

-- name: dead_letters
SELECT topic, partition, "offset", reason, detail, payload, received_at FROM dead_letters
SEMI JOIN (
    SELECT unnest($topics::VARCHAR[]) AS topic, unnest($partitions::INTEGER[]) AS partition, unnest($offsets::BIGINT[]) AS "offset",
           unnest($times::TIMESTAMP[]) AS received_at
) page USING (topic, partition, "offset", received_at)
WHERE $reason IS NULL OR reason = $reason
ORDER BY received_at DESC, topic, partition, "offset" DESC;

-- name: letters_to_replay
-- The letters after $key: at most $most letters and about $size characters, but at least one letter.
SELECT * EXCLUDE (reached) FROM (
    SELECT *, sum(length(payload)) OVER (ORDER BY received_at, key ROWS UNBOUNDED PRECEDING) - length(payload) AS reached
    FROM (
        SELECT topic, partition, "offset", payload, received_at,
               struct_pack(o := "offset", t := topic, p := partition, payload := payload) AS key
        FROM dead_letters
        WHERE payload IS NOT NULL AND received_at <= $until
            AND ($received_at IS NULL OR received_at >= $received_at)
            AND ($received_at IS NULL OR received_at > $received_at OR key > $key)
        ORDER BY received_at, key
        LIMIT $most
    )
)
WHERE reached < $size
ORDER BY received_at, key;

-- name: delete_replayed
DELETE FROM dead_letters USING batch_replayed AS done
WHERE dead_letters.topic = done.topic AND dead_letters.partition = done.partition
  AND dead_letters."offset" = done."offset" AND dead_letters.payload = done.payload;

-- name: reach_producers
-- The time since which messages are counted: a day before the last stored one. Dead letters are counted since the last time at
-- which ingestion was resumed and had caught up.
SELECT
    (
        SELECT max(received_at) FROM (
            SELECT max(received_at) AS received_at FROM interactions
            UNION ALL SELECT max(received_at) FROM feedback
            UNION ALL SELECT max(received_at) FROM dead_letters
        )
    ) - INTERVAL 1 DAY AS since,
    (SELECT max(caught_up_at) FROM ingest_resumptions) AS forgiven_at,
    EXISTS (FROM ingest_resumptions WHERE caught_up_at IS NULL) AS catching_up;

-- name: known_producers
-- The latest messages of producers, by topic and workload (feedback has none); files have no producer. Each producer has as
-- many messages as a window holds.
WITH batches AS (
    SELECT topic, workload, received_at, count(*) AS events, 0 AS dead, NULL AS example
    FROM interactions WHERE received_at >= $since GROUP BY ALL
    UNION ALL
    SELECT topic, NULL, received_at, count(*), 0, NULL FROM feedback WHERE received_at >= $since GROUP BY ALL
    UNION ALL
    SELECT topic, workload, received_at, 0, count(*),
           arg_max(topic || ':' || partition || ':' || "offset" || ', ' || reason || ', ' || detail, "offset")
    FROM dead_letters WHERE received_at >= $since AND received_at > coalesce($forgiven_at, $since - INTERVAL 1 DAY)
    GROUP BY ALL
), placed AS (
    SELECT *, events + dead AS messages,
           sum(messages) OVER (PARTITION BY topic, workload ORDER BY received_at DESC ROWS UNBOUNDED PRECEDING) AS reached,
           bool_or(events > 0) OVER (PARTITION BY topic, workload) AS proven
    FROM batches
    WHERE NOT starts_with(topic, 'import:')
)
SELECT topic, workload, received_at, events::BIGINT AS events, dead::BIGINT AS dead, example, proven
FROM placed
WHERE reached - messages < $window
ORDER BY received_at DESC
LIMIT $most;

-- name: resume
INSERT INTO ingest_resumptions VALUES ($now, NULL);

-- name: caught_up
UPDATE ingest_resumptions SET caught_up_at = $now WHERE caught_up_at IS NULL;
