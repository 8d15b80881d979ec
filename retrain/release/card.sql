-- name: sources
-- The sources of a dataset's rows, largest first.
SELECT
    CASE
        WHEN i.model = 'demonstration' THEN 'demonstrations'
        WHEN f.name = 'correction' THEN 'corrections (' || f.source || ')'
        ELSE 'answers called good (' || f.source || ')'
    END AS source,
    count(*) AS rows
FROM dataset_rows d
JOIN feedback f ON f.id = d.feedback_id
JOIN interactions i ON i.id = d.interaction_id AND i.workload = $workload
WHERE d.dataset_version = $version AND d.split = 'train'
GROUP BY ALL
ORDER BY rows DESC, source

-- name: people
-- The number of accounts that taught, and the largest share of rows of one account.
SELECT count(*) AS people, max(rows) / sum(rows) AS largest_share
FROM (
    SELECT CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account, count(*) AS rows
    FROM dataset_rows d
    JOIN feedback f ON f.id = d.feedback_id
    JOIN interactions i ON i.id = d.interaction_id AND i.workload = $workload
    WHERE d.dataset_version = $version AND d.split = 'train' AND account IS NOT NULL
    GROUP BY account
)

-- name: run
SELECT reasons, started_at, train_seconds, evaluate_seconds FROM runs WHERE id = $run_id

-- name: approvals
-- The decisions of people on a version.
SELECT state, actor, decided_at, reason FROM approvals
WHERE workload = $workload AND version = $version AND state IN ('approved', 'refused')
ORDER BY decided_at

-- name: scores
SELECT model, split, row_id, score FROM evaluations WHERE run_id = $run_id AND score IS NOT NULL ORDER BY model, split, row_id
