-- name: stored_offsets
SELECT topic, partition, next_offset FROM offsets;

-- name: insert_interactions
INSERT INTO interactions SELECT * FROM batch_interactions;

-- name: insert_new_interactions
INSERT INTO interactions
SELECT * FROM batch_interactions AS batch
WHERE NOT EXISTS (
    SELECT 1 FROM interactions AS stored
    WHERE stored.id = batch.id
      -- The first bounds are constants: whole row groups are skipped by them.
      AND stored.timestamp BETWEEN $low AND $high
      AND stored.timestamp BETWEEN batch.timestamp - to_microseconds($distance) AND batch.timestamp + to_microseconds($distance)
);

-- name: reach_interactions
-- From when on ids are remembered: a distance before the newest event, or less, if that are more than so many.
SELECT
    CASE WHEN count(*) < $most THEN max(timestamp) - to_microseconds($distance) ELSE min(timestamp) END AS since,
    count(*) AS ids
FROM (
    SELECT timestamp FROM interactions
    WHERE timestamp >= (SELECT max(timestamp) FROM interactions) - to_microseconds($distance)
    ORDER BY timestamp DESC
    LIMIT $most
);

-- name: ids_interactions
SELECT id FROM interactions WHERE timestamp >= $since;

-- name: insert_feedback
INSERT INTO feedback SELECT * FROM batch_feedback;

-- name: insert_new_feedback
INSERT INTO feedback
SELECT * FROM batch_feedback AS batch
WHERE NOT EXISTS (
    SELECT 1 FROM feedback AS stored
    WHERE stored.id = batch.id
      -- The first bounds are constants: whole row groups are skipped by them.
      AND stored.timestamp BETWEEN $low AND $high
      AND stored.timestamp BETWEEN batch.timestamp - to_microseconds($distance) AND batch.timestamp + to_microseconds($distance)
);

-- name: reach_feedback
-- From when on ids are remembered: a distance before the newest event, or less, if that are more than so many.
SELECT
    CASE WHEN count(*) < $most THEN max(timestamp) - to_microseconds($distance) ELSE min(timestamp) END AS since,
    count(*) AS ids
FROM (
    SELECT timestamp FROM feedback
    WHERE timestamp >= (SELECT max(timestamp) FROM feedback) - to_microseconds($distance)
    ORDER BY timestamp DESC
    LIMIT $most
);

-- name: ids_feedback
SELECT id FROM feedback WHERE timestamp >= $since;

-- name: insert_dead_letters
INSERT INTO dead_letters SELECT * FROM batch_dead_letters;

-- name: move_offsets
UPDATE offsets SET next_offset = moved.next_offset
FROM (
    SELECT
        unnest($topics::VARCHAR[]) AS topic, unnest($partitions::INTEGER[]) AS partition,
        unnest($starts::BIGINT[]) AS start_offset, unnest($nexts::BIGINT[]) AS next_offset
) AS moved
WHERE offsets.topic = moved.topic AND offsets.partition = moved.partition AND offsets.next_offset = moved.start_offset;

-- name: first_offsets
INSERT INTO offsets SELECT unnest($topics::VARCHAR[]), unnest($partitions::INTEGER[]), unnest($nexts::BIGINT[]);

-- name: newest_dead_letters
SELECT rowid FROM dead_letters
WHERE $reason IS NULL OR reason = $reason
ORDER BY received_at DESC, topic, partition, "offset" DESC
LIMIT $limit;

-- name: dead_letters
SELECT topic, partition, "offset", reason, detail, payload, received_at FROM dead_letters
WHERE rowid IN (SELECT unnest($rows))
ORDER BY received_at DESC, topic, partition, "offset" DESC;

-- name: letters_to_replay
SELECT topic, partition, "offset", payload FROM dead_letters WHERE payload IS NOT NULL ORDER BY received_at, "offset";

-- name: delete_replayed
DELETE FROM dead_letters USING batch_replayed AS done
WHERE dead_letters.topic = done.topic AND dead_letters.partition = done.partition
  AND dead_letters."offset" = done."offset" AND dead_letters.payload = done.payload;

-- name: known_producers
-- Who has sent events lately, by topic and workload (feedback names none); files are nobody's.
SELECT topic, workload, sum(events)::BIGINT AS events FROM (
    SELECT topic, workload, count(*) AS events FROM interactions WHERE received_at >= $since GROUP BY ALL
    UNION ALL
    SELECT topic, NULL, count(*) FROM feedback WHERE received_at >= $since GROUP BY ALL
)
WHERE NOT starts_with(topic, 'import:')
GROUP BY ALL
ORDER BY events DESC
LIMIT $most;
