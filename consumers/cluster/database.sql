-- name: claim
INSERT INTO retuned.partitions AS known (topic, partition, epoch)
SELECT topic, partition, 1 FROM unnest(%(topics)s::TEXT[], %(partitions)s::INTEGER[]) AS claimed(topic, partition)
ORDER BY topic, partition  -- a fixed order avoids deadlocks
ON CONFLICT (topic, partition) DO UPDATE SET epoch = known.epoch + 1
RETURNING topic, partition, epoch;

-- name: seed
-- The first offsets of ingesters; does nothing if any partition is known.
INSERT INTO retuned.partitions (topic, partition, epoch, next_offset, cluster_id, topic_id)
SELECT seeded.*
FROM (
    SELECT topic, partition, 0 AS epoch, next_offset, cluster_id, topic_id
    FROM unnest(
        %(topics)s::TEXT[], %(partitions)s::INTEGER[], %(nexts)s::BIGINT[], %(cluster_ids)s::TEXT[], %(topic_ids)s::TEXT[]
    ) AS given(topic, partition, next_offset, cluster_id, topic_id)
) AS seeded
WHERE NOT EXISTS (SELECT FROM retuned.partitions)
RETURNING topic;

-- name: partitions
SELECT topic, partition, next_offset, cluster_id, topic_id FROM retuned.partitions WHERE next_offset IS NOT NULL;

-- name: record
WITH asked AS (
    INSERT INTO retuned.erasure_requests (id, request)
    SELECT id, request::JSON FROM unnest(%(request_ids)s::TEXT[], %(requests)s::TEXT[]) AS request(id, request)
    ON CONFLICT DO NOTHING
)
SELECT retuned.record_segment(%(moved)s, %(files)s, %(received_at)s, %(counts)s, %(messages)s, %(tombstones)s);

-- name: segment
SELECT
    segment.number, segment.received_at, segment.counts,
    (SELECT json_agg(move) FROM retuned.segment_moves AS move WHERE move.number = segment.number) AS moves,
    (SELECT json_agg(file) FROM retuned.segment_files AS file WHERE file.number = segment.number) AS files,
    last.messages - segment.messages AS messages_after, segment.gone, segment.gone_rows,
    (SELECT received_at FROM retuned.segments WHERE number = segment.number + 1) AS next_received_at
FROM retuned.segments AS segment CROSS JOIN retuned.last_segment AS last
WHERE segment.number = %(number)s;

-- name: expired
SELECT
    number, rows,
    (SELECT json_agg(move) FROM retuned.expired_moves AS move) AS moves,
    (SELECT received_at FROM retuned.segments WHERE number = expired.number + 1) AS next_received_at
FROM retuned.expired_segments AS expired
WHERE number > %(number)s;

-- name: expire
SELECT retuned.expire_segments(now() - %(days)s * INTERVAL '1 day', %(up_to)s);

-- name: gone_files
-- From now on exchange_file takes none of them out.
UPDATE retuned.gone_files SET is_new = false
WHERE key = ANY(ARRAY(SELECT key FROM retuned.gone_files LIMIT %(some)s)) RETURNING key;

-- name: announce_file
INSERT INTO retuned.gone_files (key, is_new) VALUES (%(key)s, true) ON CONFLICT DO NOTHING RETURNING key;

-- name: delete_gone_files
WITH deleted AS (DELETE FROM retuned.gone_files WHERE key = ANY(%(keys)s) RETURNING key)
SELECT count(*) FROM deleted;

-- name: swept_on
SELECT swept_on, (now() AT TIME ZONE 'UTC')::DATE FROM retuned.sweeps;

-- name: note_sweep
UPDATE retuned.sweeps SET swept_on = %(day)s RETURNING swept_on;

-- name: unrecorded
-- The listed files without a segment, and whether no segment can get them any more, because their ingester has lost the
-- partition or moved it further. Those of erasures are in gone_files until a segment has them.
SELECT listed.key, EXISTS (
    SELECT FROM retuned.partitions AS known
    WHERE known.topic = listed.topic AND known.partition = listed.partition
      AND (known.epoch > listed.epoch OR known.next_offset IS DISTINCT FROM listed.start_offset)
) AS dead
FROM unnest(
    %(keys)s::TEXT[], %(topics)s::TEXT[], %(partitions)s::INTEGER[], %(epochs)s::BIGINT[], %(starts)s::BIGINT[]
) AS listed(key, topic, partition, epoch, start_offset)
WHERE NOT EXISTS (SELECT FROM retuned.segment_files AS recorded WHERE recorded.key = listed.key)
  AND NOT EXISTS (SELECT FROM retuned.gone_files AS gone WHERE gone.key = listed.key);

-- name: lock_user_keys
LOCK TABLE retuned.user_keys IN EXCLUSIVE MODE;

-- name: add_user_keys
INSERT INTO retuned.user_keys
SELECT unnest(%(key_ids)s::TEXT[])
WHERE NOT EXISTS (SELECT FROM retuned.user_keys)
   OR EXISTS (SELECT FROM retuned.user_keys WHERE key_id = ANY(%(key_ids)s))
ON CONFLICT DO NOTHING;

-- name: shares_user_key
SELECT EXISTS (SELECT FROM retuned.user_keys WHERE key_id = ANY(%(key_ids)s));

-- name: number_placeholders
SELECT place, given FROM retuned.number_placeholders(
    %(events)b::BYTEA[], %(event_scopes)b::BYTEA[], %(scopes)b::BYTEA[], %(values)b::BYTEA[], %(kinds)s::TEXT[],
    %(taken)s::BIGINT[]
);

-- name: skip_placeholders
-- Assigns numbers without keeping them, and returns the last one of each kind and scope.
INSERT INTO retuned.placeholders AS last (scope, value, kind, number, used_on)
SELECT scope, '', kind, skipped, (now() AT TIME ZONE 'UTC')::DATE
FROM unnest(%(scopes)b::BYTEA[], %(kinds)s::TEXT[], %(skipped)s::BIGINT[]) AS asked(scope, kind, skipped)
ORDER BY scope, kind
ON CONFLICT (scope, value, kind) DO UPDATE SET number = last.number + excluded.number, used_on = excluded.used_on
RETURNING scope, kind, number;

-- name: numbered_scopes
-- The known ids: as scopes, and as events in a scope, which take precedence.
SELECT scope, scope FROM retuned.placeholders WHERE scope = ANY(%(ids)b::BYTEA[]) AND value = '' GROUP BY scope
UNION ALL
SELECT event, scope FROM retuned.numbered_events WHERE event = ANY(%(ids)b::BYTEA[]);

-- name: forget_placeholders
-- Deletes some unused numbers without blocking users of the others. The last number of a kind is deleted after all of its
-- values, so that no number is assigned again while its value exists.
WITH gone AS (
    DELETE FROM retuned.placeholders WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM retuned.placeholders
        WHERE value <> '' AND used_on < (now() AT TIME ZONE 'UTC')::DATE - %(days)s LIMIT %(some)s FOR UPDATE SKIP LOCKED
    )) RETURNING used_on
)
SELECT count(*) FROM gone;

-- name: forget_last_placeholders
WITH gone AS (
    DELETE FROM retuned.placeholders WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM retuned.placeholders
        WHERE value = '' AND used_on < (now() AT TIME ZONE 'UTC')::DATE - %(days)s LIMIT %(some)s FOR UPDATE SKIP LOCKED
    )) RETURNING used_on
)
SELECT count(*) FROM gone;

-- name: forget_numbered_events
WITH gone AS (
    DELETE FROM retuned.numbered_events WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM retuned.numbered_events
        WHERE used_on < (now() AT TIME ZONE 'UTC')::DATE - %(days)s LIMIT %(some)s FOR UPDATE SKIP LOCKED
    )) RETURNING used_on
)
SELECT count(*) FROM gone;

-- name: files_of_segments
SELECT key, table_name, rows, bytes, sha256 FROM retuned.files_of_segments();

-- name: exchange_file
SELECT retuned.exchange_file(%(old)s, %(new)s, %(rows)s, %(bytes)s, %(sha256)s);

-- name: state_of_tombstones
SELECT coalesce(max(number), 0) FROM retuned.control WHERE table_name = 'tombstones';

-- name: tombstones
SELECT row FROM retuned.control WHERE table_name = 'tombstones' AND row IS NOT NULL;

-- name: erase_placeholders
WITH numbers AS (
    DELETE FROM retuned.placeholders WHERE scope = ANY(%(ids)b::BYTEA[])
), events AS (
    DELETE FROM retuned.numbered_events WHERE event = ANY(%(ids)b::BYTEA[])
)
SELECT 1;
