-- The datasets with erased rows. A version that is registered after an erasure learned them, too.
CREATE TABLE erasure_datasets (
    erasure_id VARCHAR NOT NULL,
    dataset_version VARCHAR NOT NULL,
    rows BIGINT NOT NULL,  -- erased rows that a training on it learns
    PRIMARY KEY (erasure_id, dataset_version)
);
INSERT INTO erasure_datasets
SELECT erasure_id, dataset_version, max(rows) FROM erasure_versions WHERE rows > 0 GROUP BY ALL;

CREATE OR REPLACE VIEW erased_versions AS
WITH RECURSIVE learned AS (
    (
        SELECT m.workload, m.version, x.requested_at AS since
        FROM erasure_datasets e
        JOIN erasures x ON x.id = e.erasure_id
        JOIN models m ON m.dataset_version = e.dataset_version
        UNION
        SELECT m.workload, m.version, x.requested_at
        FROM erasure_versions e
        JOIN erasures x ON x.id = e.erasure_id
        JOIN models m ON m.workload = e.workload
            AND (m.version = e.version OR e.rows > 0 AND m.dataset_version = e.dataset_version)
    )
    UNION
    SELECT m.workload, m.version, l.since
    FROM models m JOIN learned l ON l.workload = m.workload AND l.version = m.parent_version
)
SELECT workload, version, min(since) AS since, max(since) AS latest FROM learned GROUP BY workload, version;
