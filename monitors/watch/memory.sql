-- name: behind
SELECT p.last_batch AS since, b.last AS until FROM memory_uses_position p, batches b WHERE p.last_batch <> b.last

-- name: has_entries
SELECT 1 FROM memory_entries LIMIT 1

-- name: added
CREATE OR REPLACE TEMP TABLE added_uses AS
WITH used AS (
    SELECT workload, id, timestamp, attributes -> '$.memory' AS memory
    FROM interactions
    WHERE batch > $since AND json_type(attributes, '$.memory') = 'OBJECT'
), listed AS (
    SELECT *, unnest([false, true]) AS held_out FROM used
)
SELECT workload, id AS interaction_id, timestamp AS answered_at, entry_id, held_out, memory ->> '$.match' AS match,
       TRY_CAST(memory ->> '$.similarity' AS DOUBLE) AS similarity
FROM (
    SELECT *, unnest(from_json(memory -> list, '["VARCHAR"]')) AS entry_id
    FROM (SELECT *, CASE WHEN held_out THEN '$.held_out' ELSE '$.entries' END AS list FROM listed)
    WHERE json_type(memory, list) = 'ARRAY'
)
WHERE entry_id IS NOT NULL

-- name: add
INSERT INTO memory_uses BY NAME FROM added_uses

-- name: count
INSERT INTO memory_totals
SELECT workload, count(DISTINCT interaction_id) FILTER (NOT held_out), count(DISTINCT interaction_id) FILTER (held_out)
FROM added_uses
GROUP BY workload
ON CONFLICT DO UPDATE SET helped = helped + excluded.helped, held_out = held_out + excluded.held_out

-- name: advance
UPDATE memory_uses_position SET last_batch = $until

-- name: span
-- When the entries were looked up first.
SELECT min(answered_at) AS start FROM memory_uses WHERE workload = $workload AND answered_at >= $since

-- name: votes
-- Votes on answers for which the memory had an entry: with the entry's help (after) and held out (before). The part is the
-- entry; the empty part has all of them.
CREATE OR REPLACE TEMP TABLE arm_votes AS
WITH used AS (
    SELECT interaction_id, answered_at, entry_id, held_out FROM memory_uses
    WHERE workload = $workload AND answered_at >= $since
), judged AS (
    SELECT unnest($entries::VARCHAR[]) AS entry_id, unnest($applied::TIMESTAMP[]) AS applied
), parts AS (
    SELECT DISTINCT interaction_id, '' AS part, held_out FROM used
    UNION ALL
    SELECT interaction_id, entry_id, held_out FROM used JOIN judged USING (entry_id) WHERE answered_at >= applied
)
SELECT name, source, part, NOT held_out AS after, unit, 0 AS block, value = (name = 'hallucination') AS yes
FROM comparable_votes JOIN parts USING (interaction_id)

-- name: uses
-- How often each entry was found, and given.
SELECT entry_id AS id, count(*) FILTER (NOT held_out) AS helped, count(*) FILTER (held_out) AS held_out,
       max(answered_at) AS last_used
FROM memory_uses
WHERE workload = $workload AND list_contains($entries, entry_id)
GROUP BY entry_id

-- name: totals
SELECT workload, helped, held_out FROM memory_totals

-- name: forget
DELETE FROM memory_uses WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND answered_at < $before
