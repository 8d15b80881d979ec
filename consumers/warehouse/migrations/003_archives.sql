-- What left the warehouse: one row for each file of the archive.

CREATE TABLE archives (
    file              VARCHAR   NOT NULL,           -- below the folder of the archive
    table_name        VARCHAR   NOT NULL,           -- interactions, feedback or dead_letters
    rows              BIGINT    NOT NULL,
    bytes             BIGINT    NOT NULL,           -- of the file
    first_received_at TIMESTAMP NOT NULL,
    last_received_at  TIMESTAMP NOT NULL,
    sha256            VARCHAR   NOT NULL,           -- of the file
    archived_at       TIMESTAMP NOT NULL
);
