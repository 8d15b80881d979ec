-- name: left
-- The champion that an erasure has taken out of service; none if another version came into service since, or a run was decided
-- since that was compared with what serves instead. A version that waits for approval is not decided yet, and one that was
-- superseded or learned erased rows itself never will be.
WITH change AS (
    SELECT version, previous_version, actor, created_at FROM promotions
    WHERE workload = $workload AND event IN ('promoted', 'rolled_back')
    ORDER BY created_at DESC, rowid DESC LIMIT 1
)
SELECT c.previous_version AS version FROM change c
WHERE c.actor = 'erasure' AND NOT EXISTS (
    FROM runs r
    WHERE r.workload = $workload
      AND (
          r.state = 'succeeded' AND r.finished_at >= c.created_at AND r.parent_version IS NOT DISTINCT FROM c.version
          OR r.state = 'refused' AND r.started_at >= c.created_at
      )
      AND NOT EXISTS (
          FROM approvals a WHERE a.run_id = r.id AND a.kind = 'version' AND a.state IN ('waiting', 'superseded')
      )
      AND NOT EXISTS (
          FROM promotions p
          WHERE p.workload = $workload AND p.event = 'canary_rolled_back' AND p.actor = 'erasure'
              AND p.previous_version = r.version
      )
)

-- name: latest
SELECT latest FROM erased_versions WHERE workload = $workload AND version = $version

-- name: replaced
-- Whether an erasure replaced a champion by what serves now; null stands for the base model.
SELECT actor = 'erasure' AND previous_version = $champion AND version IS NOT DISTINCT FROM $serving AS by_erasure
FROM promotions
WHERE workload = $workload AND event IN ('promoted', 'rolled_back')
ORDER BY created_at DESC, rowid DESC LIMIT 1

-- name: workloads
-- Workloads whose champion an erasure ever took out of service.
SELECT DISTINCT workload FROM promotions WHERE event = 'promoted' AND actor = 'erasure'
