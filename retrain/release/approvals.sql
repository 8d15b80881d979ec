-- name: find
SELECT * FROM approvals WHERE id = $id

-- name: of_run
SELECT * FROM approvals WHERE run_id = $run_id

-- name: refused
SELECT * FROM approvals WHERE workload = $workload AND version = $version AND state = 'refused'
ORDER BY decided_at DESC LIMIT 1

-- name: waiting
-- A workload has one at most.
SELECT * FROM approvals WHERE workload = $workload AND state = 'waiting'

-- name: overdue
SELECT * FROM approvals WHERE state = 'waiting' AND expires_at <= $now

-- name: unannounced
-- What superseded a request has a message of its own.
SELECT * FROM approvals WHERE workload = $workload AND state != 'superseded' AND NOT announced
ORDER BY coalesce(decided_at, requested_at), id

-- name: announced
-- Unless it was settled meanwhile.
UPDATE approvals SET announced = true WHERE id = $id AND state = $state

-- name: settle
UPDATE approvals
SET state = $state, decided_at = $now, actor = $actor, reason = $reason, announced = false
WHERE id = $id

-- name: supersede
UPDATE approvals SET state = 'superseded', decided_at = $now, reason = $reason
WHERE workload = $workload AND state = 'waiting'

-- name: listed
-- Those that wait first, then the latest, with what the gate said. `scores` come once the run has ended.
SELECT a.* EXCLUDE (announced), d.reasons AS gate_reasons, r.detail -> '$.scores' AS scores,
       (d.figures ->> 'gain')::DOUBLE AS gain, (d.figures ->> 'gain_low')::DOUBLE AS gain_low,
       (d.figures ->> 'gain_high')::DOUBLE AS gain_high
FROM approvals a
LEFT JOIN decisions d ON d.run_id = a.run_id AND d.kind = 'gate'
LEFT JOIN runs r ON r.id = a.run_id
WHERE a.workload = coalesce($workload, a.workload) AND a.id = coalesce($id, a.id)
QUALIFY $each IS NULL
    OR row_number() OVER (PARTITION BY a.workload ORDER BY a.state = 'waiting' DESC, a.requested_at DESC, a.id) <= $each
ORDER BY a.state = 'waiting' DESC, a.requested_at DESC, a.id
LIMIT $most
