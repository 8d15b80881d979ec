-- name: stored_offsets
SELECT topic, partition, next_offset FROM offsets;

-- name: insert_interactions
INSERT INTO interactions
SELECT * FROM batch_interactions AS batch
WHERE NOT EXISTS (
    SELECT 1 FROM interactions AS stored
    WHERE stored.id = batch.id
      -- The first bounds are constants: whole row groups are skipped by them.
      AND stored.timestamp BETWEEN $low AND $high
      AND stored.timestamp BETWEEN batch.timestamp - to_microseconds($distance) AND batch.timestamp + to_microseconds($distance)
);

-- name: insert_feedback
INSERT INTO feedback
SELECT * FROM batch_feedback AS batch
WHERE NOT EXISTS (
    SELECT 1 FROM feedback AS stored
    WHERE stored.id = batch.id
      AND stored.timestamp BETWEEN $low AND $high
      AND stored.timestamp BETWEEN batch.timestamp - to_microseconds($distance) AND batch.timestamp + to_microseconds($distance)
);

-- name: insert_dead_letters
INSERT INTO dead_letters SELECT * FROM batch_dead_letters;

-- name: move_offsets
UPDATE offsets SET next_offset = moved.next_offset
FROM batch_offsets AS moved
WHERE offsets.topic = moved.topic AND offsets.partition = moved.partition AND offsets.next_offset = moved.start_offset;

-- name: first_offsets
INSERT INTO offsets SELECT topic, partition, next_offset FROM batch_offsets WHERE start_offset IS NULL;
