-- name: standing
-- The version in service, and a fingerprint of the decisions about accounts, which change whose votes count.
SELECT coalesce((SELECT version FROM aliases WHERE workload = $workload AND alias = 'champion'), 'base') AS version,
       (SELECT bit_xor(hash(id, superseded_at))::VARCHAR FROM account_decisions
        WHERE workload IS NULL OR workload = $workload) AS decisions

-- name: newest
-- The latest answer with a judgement, since the first period that is not stored.
SELECT max(answered_at) AS answered_at FROM judgements WHERE workload = $workload AND answered_at >= $start

-- name: known
SELECT period, helpful, total, effect FROM rating_periods
WHERE workload = $workload AND since = $since AND seconds = $seconds AND version = $version
    AND decisions IS NOT DISTINCT FROM $decisions

-- name: votes
-- Votes of users on the answers of a period: what `rates.votes.read_votes` reads. Answers of a canary are no evidence about the
-- version in service; those that name no version count for it.
CREATE OR REPLACE TEMP TABLE arm_votes AS
SELECT name, source, '' AS part, false AS after, unit, 0 AS block, value AS yes
FROM comparable_votes
WHERE name = 'helpful' AND source = 'user' AND version IN ($version, 'base')

-- name: keep
INSERT INTO rating_periods BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: forget
-- Periods of earlier champions and of other lengths, those from before a decision about accounts, and those of earlier builds.
DELETE FROM rating_periods
WHERE workload = $workload
    AND NOT (since = $since AND seconds = $seconds AND version IS NOT DISTINCT FROM $version
             AND decisions IS NOT DISTINCT FROM $decisions)
