-- Erasures beside ingesters and sweeps.

-- Finds the last change of the tombstones at once.
CREATE INDEX control_tombstones ON retuned.control (number) WHERE table_name = 'tombstones';

-- As the function without known_tombstones, which ingesters of older versions call; and only if no tombstone was added after
-- the change of that number, so that nothing is recorded that was read before an erasure. Erasures list the files of segments
-- by files_of_segments, after they have added their tombstones: whichever segment is not in the list is refused here.
CREATE FUNCTION retuned.record_segment(
    moved JSONB, files JSONB, received_at TIMESTAMPTZ, counts JSONB, held_messages BIGINT, known_tombstones BIGINT
) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    recorded BIGINT := retuned.record_segment(moved, files, received_at, counts, held_messages);
BEGIN
    -- The row of last_segment is locked by now, and this statement sees all that was committed before.
    PERFORM FROM retuned.control WHERE table_name = 'tombstones' AND number > known_tombstones;
    IF FOUND THEN
        RAISE EXCEPTION 'events were erased meanwhile' USING ERRCODE = 'RT004';
    END IF;
    RETURN recorded;
END $$;

-- The files of all segments, also of one that is being recorded.
CREATE FUNCTION retuned.files_of_segments() RETURNS SETOF retuned.segment_files LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM retuned.last_segment FOR SHARE;
    RETURN QUERY SELECT * FROM retuned.segment_files ORDER BY number, key;
END $$;

-- Whether exchange_file may take the file out. It is entered before it is uploaded, so that it is deleted if its writer is killed.
ALTER TABLE retuned.gone_files ADD COLUMN is_new BOOLEAN NOT NULL DEFAULT false;

-- As before; and false if a sweep has begun to delete the new file.
CREATE OR REPLACE FUNCTION retuned.exchange_file(
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
