-- The ids of changes, so that two histories with equal numbers can be told apart: one of them was lost with a database
-- server that failed before its replica had it.

CREATE TABLE retuned.changes (
    number     BIGINT      PRIMARY KEY,  -- of the last month
    change     TEXT        NOT NULL,     -- its id
    changed_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX changes_by_time ON retuned.changes (changed_at);
INSERT INTO retuned.changes SELECT number, change FROM retuned.last_change WHERE change IS NOT NULL;

CREATE FUNCTION retuned.keep_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO retuned.changes (number, change) VALUES (NEW.number, NEW.change)
    ON CONFLICT (number) DO UPDATE SET change = excluded.change, changed_at = excluded.changed_at;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_change AFTER UPDATE OF number ON retuned.last_change
FOR EACH ROW EXECUTE FUNCTION retuned.keep_change();

-- As the function without after_change, which daemons of older versions call; and only behind that change.
CREATE FUNCTION retuned.change_control(
    this_change TEXT, by_epoch BIGINT, after_number BIGINT, after_change TEXT, of_schema INTEGER, tables TEXT[],
    keys TEXT[], rows TEXT[]
) RETURNS BIGINT LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM retuned.last_change WHERE number = after_number AND change <> after_change;
    IF FOUND THEN
        RAISE EXCEPTION 'the warehouse has another change of this number' USING ERRCODE = 'RT003';
    END IF;
    RETURN retuned.change_control(this_change, by_epoch, after_number, of_schema, tables, keys, rows);
END $$;
