-- name: champions
-- The champion of each workload that ever had one, with the previous one. Without a version the base model serves.
SELECT champions.workload, champions.version, before.workload IS NOT NULL AS has_previous, before.version AS previous
FROM (SELECT workload, version FROM aliases WHERE alias = 'champion') AS champions
LEFT JOIN (SELECT workload, version FROM aliases WHERE alias = 'previous') AS before USING (workload)

-- name: confident
-- The least confidence of each version that is calibrated for the configured helpful rate.
SELECT model, arg_max(value, created_at) AS value FROM quality
WHERE workload = $workload AND metric = 'least_confidence' AND source = $helpful_rate
GROUP BY model

-- name: labels
-- The labels of each of these models that was trained on answers that are labels.
SELECT models.workload, models.workload || '@' || models.version AS model, card -> '$.metric.labels' AS labels
FROM models JOIN datasets ON datasets.workload = models.workload AND datasets.version = models.dataset_version
WHERE list_contains($models, model) AND card ->> '$.metric.name' = 'label'
