-- name: newest
-- The latest answer with a judgement, since the first period that is not stored.
SELECT max(answered_at) AS answered_at FROM judgements WHERE workload = $workload AND answered_at >= $start

-- name: known
SELECT period, helpful, total, effect FROM rating_periods
WHERE workload = $workload AND since = $since AND seconds = $seconds AND effect IS NOT NULL

-- name: votes
-- Votes of users on the answers of a period: what `rates.votes.read_votes` reads.
CREATE OR REPLACE TEMP TABLE arm_votes AS
SELECT name, source, '' AS part, false AS after, unit, 0 AS block, value AS yes
FROM comparable_votes
WHERE name = 'helpful' AND source = 'user'

-- name: keep
INSERT INTO rating_periods BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: forget
-- Periods of earlier champions and of other lengths, and those without a design effect, from earlier versions.
DELETE FROM rating_periods WHERE workload = $workload AND (NOT (since = $since AND seconds = $seconds) OR effect IS NULL)
