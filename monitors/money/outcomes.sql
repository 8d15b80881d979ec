-- name: outcomes
-- The days from $start to before $end, from the first day with a known outcome on.
WITH known AS (
    SELECT workload, greatest(min(day), $start::DATE) AS since FROM ledger_outcomes
    WHERE list_contains($workloads, workload) AND outcome IN ('resolved', 'unresolved') AND conversations > 0
    GROUP BY workload
), costs AS (
    SELECT workload, sum(amount) AS costs FROM ledger JOIN known USING (workload)
    WHERE kind = 'cost' AND abs(amount) < 1e150 AND period_start >= since
      AND ($end::DATE IS NULL OR period_start < $end::DATE)
    GROUP BY workload
)
SELECT workload, since,
       coalesce(sum(conversations) FILTER (outcome = 'resolved'), 0)::BIGINT AS resolved,
       coalesce(sum(conversations) FILTER (outcome = 'unresolved'), 0)::BIGINT AS unresolved,
       coalesce(sum(conversations) FILTER (outcome = 'escalated'), 0)::BIGINT AS escalated,
       coalesce(sum(conversations) FILTER (outcome = 'unknown'), 0)::BIGINT AS unknown,
       any_value(costs) AS costs
FROM known JOIN ledger_outcomes USING (workload) LEFT JOIN costs USING (workload)
WHERE day >= since AND ($end::DATE IS NULL OR day < $end::DATE)
GROUP BY workload, since
