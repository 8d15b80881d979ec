-- Segments: batches of events that ingesters wrote to object storage, and how far each partition is read.

CREATE TABLE retuned.partitions (
    topic       TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    epoch       BIGINT  NOT NULL,  -- rises whenever an ingester claims the partition: of those before, nothing counts
    next_offset BIGINT,            -- null: nothing of it is stored
    cluster_id  TEXT,              -- Kafka's ids of the cluster and of the topic that the offset is of
    topic_id    TEXT,
    PRIMARY KEY (topic, partition)
);

CREATE TABLE retuned.segments (
    number      BIGINT      PRIMARY KEY,  -- from 1 on without gaps, in the order of the commits
    received_at TIMESTAMPTZ NOT NULL,
    counts      JSONB       NOT NULL,     -- what the batch held, as the metrics count it
    messages    BIGINT      NOT NULL,     -- in this segment and all before it
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- How far a segment moved partitions. Its first start offset of a partition is null.
CREATE TABLE retuned.segment_moves (
    number       BIGINT  NOT NULL REFERENCES retuned.segments,
    topic        TEXT    NOT NULL,
    partition    INTEGER NOT NULL,
    start_offset BIGINT,
    next_offset  BIGINT  NOT NULL,
    cluster_id   TEXT,
    topic_id     TEXT,
    PRIMARY KEY (number, topic, partition)
);

CREATE TABLE retuned.segment_files (
    key        TEXT   PRIMARY KEY,  -- below store.objects_url
    number     BIGINT NOT NULL REFERENCES retuned.segments,
    table_name TEXT   NOT NULL,     -- interactions, feedback, shadow_answers or dead_letters
    rows       BIGINT NOT NULL,
    bytes      BIGINT NOT NULL,
    sha256     TEXT   NOT NULL
);
CREATE INDEX segment_files_of_a_segment ON retuned.segment_files (number);

CREATE TABLE retuned.last_segment (
    number   BIGINT NOT NULL,
    messages BIGINT NOT NULL,  -- in all segments
    one      BOOLEAN PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO retuned.last_segment VALUES (0, 0);

-- The keys under which users have pseudonyms here.
CREATE TABLE retuned.user_keys (
    key_id TEXT PRIMARY KEY
);

-- Move partitions and record the files of what was read of them, all or nothing; returns the segment's number.
-- From the first statement to the commit one segment at a time passes here, so numbers have no gaps and a follower that
-- has read one number has read all before it. Called as one statement outside of any transaction: a client that is
-- stopped in the midst of it holds no lock.
CREATE FUNCTION retuned.record_segment(
    moved JSONB, files JSONB, received_at TIMESTAMPTZ, counts JSONB, held_messages BIGINT
) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    recorded     BIGINT;
    all_messages BIGINT;
    held         BIGINT;
BEGIN
    UPDATE retuned.last_segment SET number = number + 1, messages = messages + held_messages
    RETURNING number, messages INTO recorded, all_messages;

    -- In the order in which they are claimed, so that neither waits for the other for ever.
    PERFORM FROM retuned.partitions AS known
    JOIN jsonb_to_recordset(moved) AS move(topic TEXT, partition INTEGER) USING (topic, partition)
    ORDER BY topic, partition
    FOR UPDATE OF known;

    UPDATE retuned.partitions AS known SET
        next_offset = move.next_offset,
        cluster_id = coalesce(move.cluster_id, known.cluster_id),
        topic_id = coalesce(move.topic_id, known.topic_id)
    FROM jsonb_to_recordset(moved) AS move(
        topic TEXT, partition INTEGER, epoch BIGINT, start_offset BIGINT, next_offset BIGINT, cluster_id TEXT,
        topic_id TEXT
    )
    WHERE known.topic = move.topic AND known.partition = move.partition AND known.epoch = move.epoch
      AND known.next_offset IS NOT DISTINCT FROM move.start_offset;
    GET DIAGNOSTICS held = ROW_COUNT;
    IF held <> jsonb_array_length(moved) THEN
        RAISE EXCEPTION 'another ingester has claimed or moved a partition' USING ERRCODE = 'RT001';
    END IF;

    INSERT INTO retuned.segments VALUES (recorded, received_at, counts, all_messages);
    INSERT INTO retuned.segment_moves
    SELECT recorded, move.* FROM jsonb_to_recordset(moved) AS move(
        topic TEXT, partition INTEGER, start_offset BIGINT, next_offset BIGINT, cluster_id TEXT, topic_id TEXT
    );
    INSERT INTO retuned.segment_files
    SELECT file.key, recorded, file.table_name, file.rows, file.bytes, file.sha256
    FROM jsonb_to_recordset(files) AS file(key TEXT, table_name TEXT, rows BIGINT, bytes BIGINT, sha256 TEXT);
    RETURN recorded;
END $$;
