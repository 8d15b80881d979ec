-- Segments that are gone: expired, or erased by a person. Whoever has not followed them goes on without their rows.

ALTER TABLE retuned.segments ADD COLUMN gone TEXT;  -- why; null: its files are there
ALTER TABLE retuned.segments ADD COLUMN gone_rows BIGINT;

-- All segments up to a number have expired: of these there are no other rows.
CREATE TABLE retuned.expired_segments (
    number BIGINT NOT NULL,  -- of the last one
    rows   BIGINT NOT NULL,  -- that they had
    one    BOOLEAN PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO retuned.expired_segments VALUES (0, 0);

-- How far they had moved each partition.
CREATE TABLE retuned.expired_moves (
    topic       TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    next_offset BIGINT  NOT NULL,
    cluster_id  TEXT,
    topic_id    TEXT,
    PRIMARY KEY (topic, partition)
);

-- Files that are to be deleted.
CREATE TABLE retuned.gone_files (
    key TEXT PRIMARY KEY
);

-- Up to which day the leader has looked for files that no segment has.
CREATE TABLE retuned.sweeps (
    swept_on DATE,  -- null: it never did
    one      BOOLEAN PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO retuned.sweeps VALUES (NULL);

-- A segment whose files are to be erased, or are lost; returns how many rows it had, null where there is no such segment.
-- The leader deletes the files within an hour.
CREATE FUNCTION retuned.forget_segment(segment BIGINT, reason TEXT) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    had BIGINT;
BEGIN
    UPDATE retuned.segments SET gone = reason, gone_rows = (
        SELECT coalesce(sum(file.rows), 0) FROM retuned.segment_files AS file WHERE file.number = segments.number
    ) WHERE number = segment AND gone IS NULL;
    WITH forgotten AS (DELETE FROM retuned.segment_files WHERE number = segment RETURNING key)
    INSERT INTO retuned.gone_files SELECT key FROM forgotten;
    SELECT gone_rows INTO had FROM retuned.segments WHERE number = segment;
    RETURN had;
END $$;

-- The segments of before a time expire, in the order of their numbers and up to one of these; returns how many.
CREATE FUNCTION retuned.expire_segments(before TIMESTAMPTZ, up_to BIGINT) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    last  BIGINT;
    had   BIGINT;
    count BIGINT;
BEGIN
    -- One at a time.
    PERFORM FROM retuned.expired_segments FOR UPDATE;
    SELECT least(up_to, coalesce(min(number) - 1, up_to)) INTO last FROM retuned.segments WHERE received_at >= before;

    SELECT coalesce(sum(rows), 0) INTO had FROM retuned.segment_files WHERE number <= last;
    SELECT had + coalesce(sum(gone_rows), 0) INTO had FROM retuned.segments WHERE number <= last;
    INSERT INTO retuned.expired_moves
    SELECT DISTINCT ON (topic, partition) topic, partition, next_offset, cluster_id, topic_id
    FROM retuned.segment_moves WHERE number <= last ORDER BY topic, partition, number DESC
    ON CONFLICT (topic, partition) DO UPDATE SET
        next_offset = excluded.next_offset, cluster_id = excluded.cluster_id, topic_id = excluded.topic_id;
    WITH expired AS (DELETE FROM retuned.segment_files WHERE number <= last RETURNING key)
    INSERT INTO retuned.gone_files SELECT key FROM expired;
    DELETE FROM retuned.segment_moves WHERE number <= last;
    DELETE FROM retuned.segments WHERE number <= last;
    GET DIAGNOSTICS count = ROW_COUNT;
    IF count > 0 THEN
        UPDATE retuned.expired_segments SET number = last, rows = rows + had;
    END IF;
    RETURN count;
END $$;
