-- Erasures, the models that learned from erased rows, and keyed hashes that keep erased events out.

CREATE TABLE erasures (
    id VARCHAR PRIMARY KEY,
    requested_at TIMESTAMP NOT NULL,
    requested_by VARCHAR,
    reason VARCHAR,
    selection JSON,  -- what to erase; null once it is erased
    state VARCHAR NOT NULL DEFAULT 'requested',  -- requested, deleting, rewriting, swapping, done
    found JSON,  -- where erased rows were found; an object
    error VARCHAR,  -- why the last attempt ended early; null: it did not
    done_at TIMESTAMP,
    receipt JSON
);

-- The erasures that are carried out in this file, and in the files beside it. In a cluster, each daemon has its own.
CREATE TABLE erasures_applied (
    erasure_id VARCHAR PRIMARY KEY
);

-- A version whose dataset, or that of an ancestor, contains erased rows.
CREATE TABLE erasure_versions (
    erasure_id VARCHAR NOT NULL,
    workload VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    dataset_version VARCHAR NOT NULL,
    rows BIGINT NOT NULL,  -- erased rows of its own dataset that it was trained on; 0: an ancestor was
    PRIMARY KEY (erasure_id, workload, version)
);

-- Keyed hashes of erased ids.
CREATE TABLE tombstones (
    erasure_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,  -- interaction, feedback, conversation, user
    key_id VARCHAR NOT NULL,  -- the key of pseudonyms that the hash is derived from
    hash VARCHAR NOT NULL,
    until TIMESTAMP  -- for conversations and users: later events are stored
);
