-- The ids of changes of a cluster's control tables, and of events that are in the archive.

ALTER TABLE control_positions ADD COLUMN change VARCHAR;  -- its id; null: of before ids were kept

CREATE TABLE archived_ids (       -- of a daemon in a cluster: by these all daemons store the same rows of files
    table_name VARCHAR NOT NULL,
    hash       UBIGINT NOT NULL   -- the lower half of the MD5 of the id
);
