-- name: version
SELECT m.version, m.workload, m.created_at, m.base_model, m.parent_version, m.dataset_version, m.run_id, m.removed_at,
       d.path AS dataset, d.train, d.holdout, d.replay
FROM models m LEFT JOIN datasets d ON d.version = m.dataset_version AND d.removed_at IS NULL
WHERE m.workload = $workload AND m.version = $version

-- name: decision
-- What the gate decided about a run, the latest first.
SELECT created_at, outcome, reasons, figures, metric FROM decisions
WHERE kind = 'gate' AND run_id = $run
ORDER BY created_at DESC
LIMIT 1

-- name: outputs
-- What each model answered to the held-out questions of a run.
SELECT row_id, list({'model': model, 'score': score, 'output': output, 'detail': detail, 'hallucinated': hallucinated}) AS outputs
FROM evaluations
WHERE run_id = $run AND split = 'holdout'
GROUP BY row_id

-- name: changes
SELECT created_at, event, previous_version, actor, reason, share FROM promotions
WHERE workload = $workload AND version = $version
ORDER BY created_at DESC

-- name: learned
-- Of whom it learned: rows and accounts by source.
SELECT f.source, count(*) AS rows, count(DISTINCT coalesce(f.user_id, i.user_id)) AS accounts
FROM dataset_rows r
JOIN feedback f ON f.id = r.feedback_id
LEFT JOIN interactions i ON i.id = r.interaction_id
WHERE r.dataset_version = $dataset AND r.split = 'train'
GROUP BY f.source
ORDER BY rows DESC
