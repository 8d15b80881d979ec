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

CREATE TABLE retuned.last_change (
    number         BIGINT  NOT NULL,  -- changes are numbered without gaps, in the order of their commits
    change         TEXT,              -- its id
    schema_version INTEGER,           -- of the warehouse that the rows are of; null: there are none yet
    deleted_until  BIGINT  NOT NULL,  -- of changes up to this one, rows that were deleted are not told any more
    one            BOOLEAN PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO retuned.last_change VALUES (0, NULL, NULL, 0);

-- A transaction of the leader: all rows that it changed. Returns its number, also where it was made already and the answer
-- was lost. Called as one statement outside of any transaction: a client that is stopped in the midst of it holds no lock.
CREATE FUNCTION retuned.change_control(
    this_change TEXT, by_epoch BIGINT, after_number BIGINT, of_schema INTEGER, tables TEXT[], keys TEXT[], rows TEXT[]
) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
    changed BIGINT;
BEGIN
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
