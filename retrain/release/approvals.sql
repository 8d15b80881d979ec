-- name: find
SELECT * FROM approvals WHERE id = $id

-- name: of_run
-- The latest request of a kind.
SELECT * FROM approvals WHERE run_id = $run_id AND kind = $kind ORDER BY requested_at DESC, state = 'superseded' LIMIT 1

-- name: refused
SELECT * FROM approvals WHERE workload = $workload AND version = $version AND state = 'refused'
ORDER BY decided_at DESC LIMIT 1

-- name: waiting
-- A workload has at most one of each kind.
SELECT * FROM approvals WHERE workload = coalesce($workload, workload) AND state = 'waiting' ORDER BY expires_at, id

-- name: overdue
SELECT * FROM approvals WHERE state = 'waiting' AND expires_at <= $now

-- name: unannounced
-- Superseded requests need no message.
SELECT * FROM approvals WHERE workload = $workload AND state != 'superseded' AND NOT announced
ORDER BY coalesce(decided_at, requested_at), id

-- name: announced
-- Unless its state changed meanwhile.
UPDATE approvals SET announced = true WHERE id = $id AND state = $state

-- name: settle
UPDATE approvals
SET state = $state, decided_at = $now, actor = $actor, reason = $reason, announced = false
WHERE id = $id

-- name: supersede
UPDATE approvals SET state = 'superseded', decided_at = $now, reason = $reason
WHERE workload = coalesce($workload, workload) AND kind = coalesce($kind, kind) AND state = 'waiting'

-- name: listed
-- Waiting requests first, then the latest, with the gate's decision. `scores` are set once the run has ended; `counts` for a
-- waiting dataset.
WITH counted AS (
    SELECT workload, dataset_version AS version, list({'state': state, 'reason': reason, 'rows': n} ORDER BY state, reason) AS counts
    FROM (
        SELECT workload, dataset_version, state, reason, count(*) AS n
        FROM row_states SEMI JOIN (
            SELECT workload, version FROM approvals WHERE kind = 'dataset' AND state = 'waiting'
        ) waiting ON waiting.workload = row_states.workload AND waiting.version = row_states.dataset_version
        GROUP BY workload, dataset_version, state, reason
    )
    GROUP BY workload, dataset_version
)
SELECT a.* EXCLUDE (announced), d.reasons AS gate_reasons, r.detail -> '$.scores' AS scores,
       (d.figures ->> 'gain')::DOUBLE AS gain, (d.figures ->> 'gain_low')::DOUBLE AS gain_low,
       (d.figures ->> 'gain_high')::DOUBLE AS gain_high, c.counts
FROM approvals a
LEFT JOIN decisions d ON d.run_id = a.run_id AND d.kind = 'gate'
LEFT JOIN runs r ON r.id = a.run_id
LEFT JOIN counted c ON a.kind = 'dataset' AND c.workload = a.workload AND c.version = a.version
WHERE a.workload = coalesce($workload, a.workload) AND a.id = coalesce($id, a.id)
QUALIFY $each IS NULL
    OR row_number() OVER (PARTITION BY a.workload ORDER BY a.state = 'waiting' DESC, a.requested_at DESC, a.id) <= $each
ORDER BY a.state = 'waiting' DESC, a.requested_at DESC, a.id
LIMIT $most
