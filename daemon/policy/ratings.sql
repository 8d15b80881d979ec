-- name: newest
SELECT max(answered_at) AS answered_at FROM judgements WHERE workload = $workload

-- name: known
SELECT period, helpful, total FROM rating_periods WHERE workload = $workload AND since = $since AND seconds = $seconds

-- name: count
-- One vote of each account, or else conversation: the further ones of a period are no independent observations.
SELECT count(*) FILTER (value) AS helpful, count(*) AS total
FROM (
    SELECT value FROM comparable_votes
    WHERE name = 'helpful' AND source = 'user'
    QUALIFY row_number() OVER (PARTITION BY unit ORDER BY answered_at, interaction_id) = 1
)

-- name: keep
INSERT INTO rating_periods BY NAME SELECT * FROM (SELECT unnest($rows, recursive := true))

-- name: forget
-- Those of the champions before, and of other lengths.
DELETE FROM rating_periods WHERE workload = $workload AND NOT (since = $since AND seconds = $seconds)
