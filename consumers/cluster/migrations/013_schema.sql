-- The schema of retuned 1.0.

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
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    gone        TEXT,                     -- why its rows expired, or a person erased them; null: its files are there
    gone_rows   BIGINT
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

-- Move partitions and record the files of what was read of them, all or nothing; returns the segment's number. Nothing is
-- recorded if a tombstone was added after the change `known_tombstones`, so that nothing is recorded that was read before an
-- erasure. Erasures list the files of segments by files_of_segments, after they have added their tombstones: whichever segment
-- is not in the list is refused here.
-- From the first statement to the commit one segment at a time passes here, so numbers have no gaps and a follower that
-- has read one number has read all before it. Called as one statement outside of any transaction: a client that is
-- stopped in the midst of it holds no lock.
CREATE FUNCTION retuned.record_segment(
    moved JSONB, files JSONB, received_at TIMESTAMPTZ, counts JSONB, held_messages BIGINT, known_tombstones BIGINT
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
    -- The row of last_segment is locked by now, and this statement sees all that was committed before.
    PERFORM FROM retuned.control WHERE table_name = 'tombstones' AND number > known_tombstones;
    IF FOUND THEN
        RAISE EXCEPTION 'events were erased meanwhile' USING ERRCODE = 'RT004';
    END IF;
    RETURN recorded;
END $$;

-- The control tables: what the daemons of a cluster decide and do, row by row, and which of them leads.

CREATE TABLE retuned.leader (
    epoch    BIGINT NOT NULL,  -- rises with each leader: of those before, nothing counts
    instance TEXT,             -- null: there was none yet
    one      BOOLEAN PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO retuned.leader VALUES (0, NULL);

-- Daemons that run, or ran lately.
CREATE TABLE retuned.daemons (
    instance TEXT        PRIMARY KEY,  -- of one process
    name     TEXT        NOT NULL,     -- host and port
    url      TEXT        NOT NULL,     -- where other daemons reach it
    backend  INTEGER     NOT NULL,     -- the server's process for its connection
    beat_at  TIMESTAMPTZ NOT NULL      -- when it was last heard of
);

-- The rows of the control tables as they are now.
CREATE TABLE retuned.control (
    table_name TEXT        NOT NULL,
    key        TEXT        NOT NULL,  -- the values of its key, as a JSON array
    number     BIGINT      NOT NULL,  -- of the last change of it
    row        TEXT,                  -- as a JSON object, which may hold NaN and Infinity; null: deleted
    changed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, key)
);
CREATE INDEX control_by_number ON retuned.control (number);
CREATE INDEX control_tombstones ON retuned.control (number) WHERE table_name = 'tombstones';

CREATE TABLE retuned.last_change (
    number         BIGINT  NOT NULL,  -- changes are numbered without gaps, in the order of their commits
    change         TEXT,              -- its id
    schema_version INTEGER,           -- of the warehouse that the rows are of; null: there are none yet
    deleted_until  BIGINT  NOT NULL,  -- of changes up to this one, rows that were deleted are not told any more
    one            BOOLEAN PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO retuned.last_change VALUES (0, NULL, NULL, 0);

-- A transaction of the leader: all rows that it changed, behind the change `after_change`. Returns its number, also where it was
-- made already and the answer was lost. Called as one statement outside of any transaction: a client that is stopped in the midst of it holds no lock.
CREATE FUNCTION retuned.change_control(
    this_change TEXT, by_epoch BIGINT, after_number BIGINT, after_change TEXT, of_schema INTEGER, tables TEXT[],
    keys TEXT[], rows TEXT[]
) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    changed BIGINT;
BEGIN
    PERFORM FROM retuned.last_change WHERE number = after_number AND change <> after_change;
    IF FOUND THEN
        RAISE EXCEPTION 'the warehouse has another change of this number' USING ERRCODE = 'RT003';
    END IF;
    -- Until the commit nobody else becomes the leader.
    PERFORM FROM retuned.leader WHERE epoch = by_epoch FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another daemon leads the cluster' USING ERRCODE = 'RT002';
    END IF;
    SELECT number INTO changed FROM retuned.last_change WHERE number = after_number + 1 AND change = this_change;
    IF FOUND THEN
        RETURN changed;
    END IF;
    UPDATE retuned.last_change SET
        number = number + 1, change = this_change, schema_version = coalesce(of_schema, schema_version)
    WHERE number = after_number RETURNING number INTO changed;
    IF changed IS NULL THEN
        RAISE EXCEPTION 'the warehouse lacks changes of the control tables' USING ERRCODE = 'RT003';
    END IF;
    INSERT INTO retuned.control (table_name, key, number, row)
    SELECT table_name, key, changed, row FROM unnest(tables, keys, rows) AS change(table_name, key, row)
    ON CONFLICT (table_name, key)
    DO UPDATE SET number = excluded.number, row = excluded.row, changed_at = excluded.changed_at;
    RETURN changed;
END $$;

-- The ids of changes, so that two histories with equal numbers can be told apart: one of them was lost with a database
-- server that failed before its replica had it.

CREATE TABLE retuned.changes (
    number     BIGINT      PRIMARY KEY,  -- of the last month
    change     TEXT        NOT NULL,     -- its id
    changed_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX changes_by_time ON retuned.changes (changed_at);

CREATE FUNCTION retuned.keep_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO retuned.changes (number, change) VALUES (NEW.number, NEW.change)
    ON CONFLICT (number) DO UPDATE SET change = excluded.change, changed_at = excluded.changed_at;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_change AFTER UPDATE OF number ON retuned.last_change
FOR EACH ROW EXECUTE FUNCTION retuned.keep_change();

-- The numbers of placeholders, such as that of <EMAIL_1>, within conversations: which value has which. Ids and values are
-- keyed hashes; whoever has the database alone can compute none of them.

CREATE TABLE retuned.placeholders (
    scope   BYTEA   NOT NULL,  -- the conversation, or the event that is in none
    value   BYTEA   NOT NULL,  -- what the placeholder stands for; empty: the row has the last number of its kind
    kind    TEXT    NOT NULL,
    number  BIGINT  NOT NULL,
    used_on DATE    NOT NULL,  -- of UTC; for the last number of a kind that of the value that was used last
    PRIMARY KEY (scope, value, kind)
);
CREATE INDEX placeholders_by_day ON retuned.placeholders (used_on);

-- Of interactions with numbers, so that feedback on them has the same ones.
CREATE TABLE retuned.numbered_events (
    event   BYTEA PRIMARY KEY,
    scope   BYTEA NOT NULL,
    used_on DATE  NOT NULL
);
CREATE INDEX numbered_events_by_day ON retuned.numbered_events (used_on);

-- The number of each value in its scope, of those that had none too: new ones count up in the order in which they are
-- asked for. A number that is given once is never given to another value of its kind and scope: whoever gives numbers
-- there holds the row of the last one until the commit. Numbers are given again to the same values, whoever asks, so it
-- does not matter what becomes of the batch for which they were given, nor in how many partitions a conversation is.
-- Called as one statement outside of any transaction, like record_segment.
--
-- scopes, kinds, vals and taken are rows, each once. With an empty value a row keeps the numbers up to `taken` from being
-- given.
CREATE FUNCTION retuned.number_placeholders(
    events BYTEA[], event_scopes BYTEA[], scopes BYTEA[], vals BYTEA[], kinds TEXT[], taken BIGINT[]
) RETURNS TABLE (place BIGINT, given BIGINT) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    today            DATE := (now() AT TIME ZONE 'UTC')::DATE;
    something_is_new BOOLEAN;
BEGIN
    -- Each in one order, so that two that ask for the same wait for each other at most once.
    INSERT INTO retuned.numbered_events AS known (event, scope, used_on)
    SELECT event, scope, today FROM unnest(events, event_scopes) AS asked(event, scope) ORDER BY event
    ON CONFLICT (event) DO UPDATE SET used_on = excluded.used_on WHERE known.used_on < excluded.used_on;

    INSERT INTO retuned.placeholders AS last (scope, value, kind, number, used_on)
    SELECT scope, '', kind, max(taken), today
    FROM unnest(scopes, vals, kinds, taken) AS asked(scope, value, kind, taken)
    LEFT JOIN retuned.placeholders AS known USING (scope, value, kind)
    WHERE known.number IS NULL OR known.number < taken OR known.used_on < today
    GROUP BY scope, kind ORDER BY scope, kind
    ON CONFLICT (scope, value, kind)
    DO UPDATE SET number = greatest(last.number, excluded.number), used_on = excluded.used_on;
    something_is_new := FOUND;

    RETURN QUERY
    SELECT place, number
    FROM unnest(scopes, vals, kinds) WITH ORDINALITY AS asked(scope, value, kind, place)
    JOIN retuned.placeholders AS known USING (scope, value, kind)
    WHERE value <> '';
    IF NOT something_is_new THEN
        RETURN;
    END IF;

    UPDATE retuned.placeholders AS known SET used_on = today
    FROM unnest(scopes, vals, kinds) AS asked(scope, value, kind)
    WHERE known.scope = asked.scope AND known.value = asked.value AND known.kind = asked.kind AND known.used_on < today;

    RETURN QUERY
    WITH missing AS (
        SELECT asked.*
        FROM unnest(scopes, vals, kinds) WITH ORDINALITY AS asked(scope, value, kind, place)
        LEFT JOIN retuned.placeholders AS known USING (scope, value, kind)
        WHERE value <> '' AND known.number IS NULL
    ), numbered AS (
        SELECT
            place, scope, missing.value, kind,
            last.number + row_number() OVER (PARTITION BY scope, kind ORDER BY place) AS number
        FROM missing JOIN retuned.placeholders AS last USING (scope, kind)
        WHERE last.value = ''
    ), stored AS (
        INSERT INTO retuned.placeholders (scope, value, kind, number, used_on)
        SELECT scope, value, kind, number, today FROM numbered
    ), moved AS (
        UPDATE retuned.placeholders AS last SET number = highest.number
        FROM (SELECT scope, kind, max(number) AS number FROM numbered GROUP BY scope, kind) AS highest
        WHERE last.scope = highest.scope AND last.value = '' AND last.kind = highest.kind
    )
    SELECT place, number FROM numbered;
END $$;

-- Leading is a lease: the leader has it until it has not reported for some seconds, or leaves.

-- The epoch under which a daemon leads from now on; null: another one does. A leader that left has no row in `daemons`.
-- Its report and this wait for each other, so that its lease cannot be renewed and taken over at once. Called as one
-- statement outside of any transaction, like change_control.
CREATE FUNCTION retuned.lead(this_instance TEXT, lease_seconds DOUBLE PRECISION) RETURNS BIGINT
LANGUAGE plpgsql AS $$
DECLARE
    new_epoch BIGINT;
BEGIN
    IF retuned.has_leader(lease_seconds) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM retuned.leader FOR UPDATE;
    IF retuned.has_leader(lease_seconds) THEN
        RETURN NULL;
    END IF;
    UPDATE retuned.leader SET epoch = epoch + 1, instance = this_instance RETURNING epoch INTO new_epoch;
    -- Its lease begins now, however long ago it reported.
    UPDATE retuned.daemons SET beat_at = now() WHERE instance = this_instance;
    RETURN new_epoch;
END $$;

-- Each statement of a VOLATILE function sees what was committed before it.
CREATE FUNCTION retuned.has_leader(lease_seconds DOUBLE PRECISION) RETURNS BOOLEAN LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (
        SELECT FROM retuned.leader JOIN retuned.daemons USING (instance)
        WHERE beat_at > now() - lease_seconds * INTERVAL '1 second'
    );
$$;

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
    key    TEXT    PRIMARY KEY,
    is_new BOOLEAN NOT NULL DEFAULT false  -- exchange_file may take it out. It is entered before it is uploaded, so that it is
                                           -- deleted if its writer is killed
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

-- The segments of before a time expire, in the order of their numbers and up to one of these; returns how many. It looks at no
-- segment outside of the part that expires, so that it does not take longer with more of them.
CREATE FUNCTION retuned.expire_segments(before TIMESTAMPTZ, up_to BIGINT) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    done  BIGINT;
    last  BIGINT;
    had   BIGINT;
    count BIGINT;
BEGIN
    -- One at a time.
    SELECT number INTO done FROM retuned.expired_segments FOR UPDATE;
    SELECT coalesce(min(number) - 1, up_to) INTO last
    FROM retuned.segments WHERE number > done AND number <= up_to AND received_at >= before;

    SELECT coalesce(sum(rows), 0) INTO had FROM retuned.segment_files WHERE number > done AND number <= last;
    SELECT had + coalesce(sum(gone_rows), 0) INTO had FROM retuned.segments WHERE number > done AND number <= last;
    INSERT INTO retuned.expired_moves
    SELECT DISTINCT ON (topic, partition) topic, partition, next_offset, cluster_id, topic_id
    FROM retuned.segment_moves WHERE number > done AND number <= last ORDER BY topic, partition, number DESC
    ON CONFLICT (topic, partition) DO UPDATE SET
        next_offset = excluded.next_offset, cluster_id = excluded.cluster_id, topic_id = excluded.topic_id;
    WITH expired AS (DELETE FROM retuned.segment_files WHERE number > done AND number <= last RETURNING key)
    INSERT INTO retuned.gone_files SELECT key FROM expired;
    DELETE FROM retuned.segment_moves WHERE number > done AND number <= last;
    DELETE FROM retuned.segments WHERE number > done AND number <= last;
    GET DIAGNOSTICS count = ROW_COUNT;
    IF count > 0 THEN
        UPDATE retuned.expired_segments SET number = last, rows = rows + had;
    END IF;
    RETURN count;
END $$;

-- The files of all segments, also of one that is being recorded.
CREATE FUNCTION retuned.files_of_segments() RETURNS SETOF retuned.segment_files LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM retuned.last_segment FOR SHARE;
    RETURN QUERY SELECT * FROM retuned.segment_files ORDER BY number, key;
END $$;

-- A file of a segment takes the place of another one, without some of its rows. Returns whether it did: not if the old one is
-- gone, or if a sweep has begun to delete the new one. The leader deletes the old one within an hour.
CREATE FUNCTION retuned.exchange_file(
    old TEXT, new TEXT, new_rows BIGINT, new_bytes BIGINT, new_sha256 TEXT
) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM retuned.gone_files WHERE key = new AND is_new FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE retuned.segment_files SET key = new, rows = new_rows, bytes = new_bytes, sha256 = new_sha256 WHERE key = old;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM retuned.gone_files WHERE key = new;
    INSERT INTO retuned.gone_files VALUES (old);
    RETURN true;
END $$;

-- Entries of the audit by daemons that stand by, until the leader appends them to the chain.
CREATE TABLE retuned.audit_entries (
    id         TEXT        PRIMARY KEY,
    entry      JSON        NOT NULL,  -- not JSONB, which refuses the \u0000 that people may write
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- Requests of kafka.erasure_topic, from the segment of their message until the leader has taken them over.
CREATE TABLE retuned.erasure_requests (
    id         TEXT        PRIMARY KEY,  -- of the erasure: topic, partition and offset, and the topic's own id
    request    JSON        NOT NULL,     -- its row in the table erasures; users are pseudonyms
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
