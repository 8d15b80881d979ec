-- Who or what changed something, and who read conversations; see consumers/warehouse/audit.py. Rows are only appended.
CREATE TABLE audit (
    sequence   BIGINT    PRIMARY KEY,  -- 1, 2, 3, without gaps
    created_at TIMESTAMP NOT NULL,     -- UTC, in whole milliseconds
    actor      VARCHAR   NOT NULL,
    actor_kind VARCHAR   NOT NULL,     -- principal, rule or local
    action     VARCHAR   NOT NULL,
    outcome    VARCHAR   NOT NULL,     -- done, refused or failed
    workload   VARCHAR,
    subject    VARCHAR,                -- what it was done to: a version, an id, a table
    request_id VARCHAR,                -- shared by all rows of one request
    reason     VARCHAR,
    details    VARCHAR   NOT NULL,     -- JSON; the hash is about this very text
    previous   VARCHAR   NOT NULL,     -- hash of the row before
    hash       VARCHAR   NOT NULL
);

-- Legal holds: what they cover is not deleted.
CREATE TABLE holds (
    id             VARCHAR   PRIMARY KEY,
    workload       VARCHAR,              -- null: all
    user_id        VARCHAR,              -- pseudonym; null: of all users
    reason         VARCHAR   NOT NULL,
    placed_by      VARCHAR   NOT NULL,
    placed_at      TIMESTAMP NOT NULL,
    released_by    VARCHAR,
    released_at    TIMESTAMP,            -- null: in force
    release_reason VARCHAR
);
