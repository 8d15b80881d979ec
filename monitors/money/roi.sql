-- name: items
-- Ignores amounts too large to sum, which earlier releases booked without a limit.
SELECT workload, version, kind, item, unit, sum(quantity) AS quantity, sum(amount) AS amount
FROM ledger
WHERE list_contains($workloads, workload) AND abs(amount) < 1e150 AND abs(quantity) < 1e150
GROUP BY workload, version, kind, item, unit
ORDER BY kind DESC, item, unit, version

-- name: workloads
SELECT DISTINCT workload FROM ledger ORDER BY workload

-- name: moments
-- The moments of each request by version. A request has a workload, a promotion ('': before the first; null: all) and a first
-- day (null: all days).
WITH requests AS (
    SELECT unnest(range(len($workloads))) AS request, unnest($workloads) AS workload, unnest($promotions::VARCHAR[]) AS promotion,
           unnest($since::TIMESTAMP[]) AS since
), days AS (
    SELECT request, nullif(version, '') AS version, hour::DATE AS day, sum(conversations)::DOUBLE AS conversations,
           sum(interactions)::DOUBLE AS interactions, sum(gain) AS gain, sum(cost) AS cost,
           sum(gain_squared) AS gain_squared, sum(cost_squared) AS cost_squared, sum(gain_cost) AS gain_cost
    FROM requests JOIN ledger_moments ON ledger_moments.workload = requests.workload
        AND (requests.promotion IS NULL OR ledger_moments.promotion = requests.promotion)
        AND (since IS NULL OR hour >= date_trunc('day', since))
    WHERE gain_squared < 1e300 AND cost_squared < 1e300
    GROUP BY ALL
)
SELECT request, version, sum(conversations) AS conversations, sum(interactions) AS interactions, sum(gain) AS gain,
       sum(cost) AS cost, sum(gain_squared) AS gain_squared, sum(cost_squared) AS cost_squared, sum(gain_cost) AS gain_cost,
       count(*)::DOUBLE AS days, sum(conversations * conversations) AS conversations_squared,
       sum(gain * gain / conversations) AS daily_gain_squared
FROM days
WHERE conversations > 0
GROUP BY request, version

-- name: changes
-- The latest changes of the champion, newest first, each with the change before it. The first change to a version has the cost
-- of producing it, which is booked without a promotion, because it may be known long before the version serves.
WITH changes AS (
    SELECT *, coalesce(lag(id) OVER (PARTITION BY workload ORDER BY created_at), '') AS before,
           version IS NOT NULL AND row_number() OVER (PARTITION BY workload, version ORDER BY created_at) = 1 AS is_first
    FROM promotions
    WHERE list_contains($workloads, workload) AND event IN ('promoted', 'rolled_back')
    QUALIFY row_number() OVER (PARTITION BY workload ORDER BY created_at DESC) <= $most
)
SELECT workload, id, created_at, event, version, previous_version, before,
       coalesce((SELECT sum(amount) FROM ledger
                 WHERE ledger.workload = changes.workload AND ledger.version IS NOT DISTINCT FROM changes.version
                     AND (promotion = changes.id OR is_first AND promotion IS NULL AND item IN ('training', 'judging'))
                     AND kind = 'cost' AND abs(amount) < 1e150), 0) AS costs
FROM changes
ORDER BY created_at DESC

-- name: left_out
SELECT workload, item, sum(reported)::BIGINT AS reported FROM ledger_left_out
WHERE list_contains($workloads, workload) GROUP BY workload, item ORDER BY item
