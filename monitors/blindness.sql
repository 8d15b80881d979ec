-- name: of_monitor
SELECT found, needed, what FROM blindness WHERE workload = $workload AND monitor = $monitor

-- name: of_workloads
SELECT workload, monitor, found, needed, what, since FROM blindness
WHERE list_contains($workloads, workload) ORDER BY monitor

-- name: has_enough
DELETE FROM blindness WHERE workload = $workload AND monitor = $monitor

-- name: still_too_few
UPDATE blindness SET found = $found, needed = $needed, what = $what WHERE workload = $workload AND monitor = $monitor
