-- name: cells
-- The votes of the temporary table `arm_votes` (name, source, part, after, unit, block, yes), for each name, source and part:
-- the number of units with the same counts in both arms (block is null), and the votes of each block. Each vote counts once,
-- unless its unit has more than five votes and more than a tenth of its arm's: these are weighted down to a tenth, or to five.
WITH cells AS (
    SELECT name, source, part, after, unit, block, count(*) AS n, count(*) FILTER (yes) AS yes
    FROM arm_votes
    GROUP BY ALL
), weighed AS (
    SELECT *, least(1.0, greatest(5.0, sum(n) OVER (PARTITION BY name, source, part, after) / 10.0)
                         / sum(n) OVER (PARTITION BY name, source, part, after, unit)) AS weight
    FROM cells
), summed AS (
    SELECT name, source, part, unit, block,
           coalesce(sum(yes * weight) FILTER (NOT after), 0) AS yes_before,
           coalesce(sum(n * weight) FILTER (NOT after), 0) AS n_before,
           coalesce(sum(yes * weight) FILTER (after), 0) AS yes_after,
           coalesce(sum(n * weight) FILTER (after), 0) AS n_after
    FROM weighed
    GROUP BY GROUPING SETS ((name, source, part, unit), (name, source, part, block))
)
SELECT name, source, part, block, yes_before, n_before, yes_after, n_after, count(*) AS units
FROM summed
GROUP BY ALL
ORDER BY ALL
