-- A file of a segment takes the place of another one, without some of its rows. Returns whether the old one was there. The
-- leader deletes it within an hour.
CREATE FUNCTION retuned.exchange_file(old TEXT, new TEXT, new_rows BIGINT, new_bytes BIGINT, new_sha256 TEXT)
RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    UPDATE retuned.segment_files SET key = new, rows = new_rows, bytes = new_bytes, sha256 = new_sha256 WHERE key = old;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO retuned.gone_files VALUES (old);
    RETURN true;
END $$;
