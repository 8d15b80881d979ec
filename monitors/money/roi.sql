-- name: items
-- Amounts that an earlier version booked without a limit may be beyond any sum: those are passed over.
SELECT version, kind, item, unit, sum(quantity) AS quantity, sum(amount) AS amount
FROM ledger
WHERE ($workload IS NULL OR workload = $workload) AND abs(amount) < 1e150 AND abs(quantity) < 1e150
GROUP BY version, kind, item, unit
ORDER BY kind DESC, item, unit, version

-- name: moments
SELECT nullif(version, '') AS version, sum(conversations)::DOUBLE AS conversations,
       sum(interactions)::DOUBLE AS interactions, sum(gain) AS gain, sum(cost) AS cost,
       sum(interactions_squared) AS interactions_squared, sum(gain_squared) AS gain_squared,
       sum(cost_squared) AS cost_squared, sum(gain_interactions) AS gain_interactions, sum(gain_cost) AS gain_cost
FROM ledger_moments
WHERE ($workload IS NULL OR workload = $workload)
    AND ($promotion IS NULL OR promotion = $promotion)
    AND ($since IS NULL OR hour >= date_trunc('hour', $since::TIMESTAMP))
    AND gain_squared < 1e300 AND cost_squared < 1e300
GROUP BY version

-- name: changes
-- The latest changes of the champion, newest first, each with the one before it.
SELECT id, created_at, event, version, previous_version, coalesce(lag(id) OVER (ORDER BY created_at), '') AS before,
       coalesce((SELECT sum(amount) FROM ledger WHERE promotion = promotions.id AND kind = 'cost' AND abs(amount) < 1e150
                 AND version IS NOT DISTINCT FROM promotions.version), 0) AS costs
FROM promotions
WHERE workload = $workload AND event IN ('promoted', 'rolled_back')
ORDER BY created_at DESC
LIMIT $most

-- name: left_out
SELECT item, sum(reported)::BIGINT AS reported FROM ledger_left_out WHERE workload = $workload GROUP BY item ORDER BY item
