ALTER TABLE runs ADD COLUMN start_version VARCHAR;  -- the version from which the training starts, or base

-- Decisions to keep a version that learned erased rows in service for some time.
CREATE TABLE erased_kept (
    workload   VARCHAR   NOT NULL,
    created_at TIMESTAMP NOT NULL,
    until      TIMESTAMP NOT NULL,  -- from then on the settings of the workload apply again
    actor      VARCHAR   NOT NULL,
    reason     VARCHAR   NOT NULL
);

-- Versions that learned erased rows, or continue from a version that did, with the times of the first and the latest erasure.
CREATE VIEW erased_versions AS
WITH RECURSIVE learned AS (
    SELECT m.workload, m.version, x.requested_at AS since
    FROM erasure_versions e
    JOIN erasures x ON x.id = e.erasure_id
    JOIN models m ON m.workload = e.workload
        AND (m.version = e.version OR e.rows > 0 AND m.dataset_version = e.dataset_version)
    UNION
    SELECT m.workload, m.version, l.since
    FROM models m JOIN learned l ON l.workload = m.workload AND l.version = m.parent_version
)
SELECT workload, version, min(since) AS since, max(since) AS latest FROM learned GROUP BY workload, version;
