-- name: outcomes
-- From the first day on of which it is known whether a conversation was resolved; of days from $start to before $end.
WITH known AS (
    SELECT greatest(min(day), $start::DATE) AS since FROM ledger_outcomes
    WHERE workload = $workload AND outcome IN ('resolved', 'unresolved') AND conversations > 0
    HAVING count(*) > 0
)
SELECT since,
       coalesce(sum(conversations) FILTER (outcome = 'resolved'), 0)::BIGINT AS resolved,
       coalesce(sum(conversations) FILTER (outcome = 'unresolved'), 0)::BIGINT AS unresolved,
       coalesce(sum(conversations) FILTER (outcome = 'escalated'), 0)::BIGINT AS escalated,
       coalesce(sum(conversations) FILTER (outcome = 'unknown'), 0)::BIGINT AS unknown,
       (SELECT sum(amount) FROM ledger
        WHERE ledger.workload = $workload AND kind = 'cost' AND abs(amount) < 1e150 AND period_start >= since
            AND ($end::DATE IS NULL OR period_start < $end::DATE)) AS costs
FROM known, ledger_outcomes
WHERE workload = $workload AND day >= since AND ($end::DATE IS NULL OR day < $end::DATE)
GROUP BY since
