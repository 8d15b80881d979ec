-- name: behind
SELECT p.last_batch AS since, b.last AS until FROM judgements_position p, batches b WHERE p.last_batch <> b.last

-- name: touched
-- Interactions that came since the last look, or on which feedback did; at the first one, all with feedback.
CREATE OR REPLACE TEMP TABLE touched AS
SELECT interaction_id AS id FROM feedback
WHERE name IN ('helpful', 'hallucination', 'correction') AND (batch > $since OR $since < 0)
UNION
SELECT id FROM interactions WHERE batch > $since AND $since >= 0

-- name: given
CREATE OR REPLACE TEMP TABLE touched AS SELECT DISTINCT unnest($ids::VARCHAR[]) AS id

-- name: drop
DELETE FROM judgements WHERE interaction_id IN (SELECT id FROM touched)

-- name: make
INSERT INTO judgements BY NAME
WITH said AS (
    SELECT id, interaction_id, name, value, source, user_id, timestamp, received_at FROM votes
    WHERE interaction_id IN (SELECT id FROM touched)
    UNION ALL
    SELECT id, interaction_id, name, NULL, source, user_id, timestamp, received_at FROM feedback
    WHERE name = 'correction' AND interaction_id IN (SELECT id FROM touched)
)
SELECT i.workload, i.id AS interaction_id, i.timestamp AS answered_at, i.received_at AS answer_received_at,
       i.model = 'demonstration' AS demonstration, starts_with(i.topic, 'import:') AS imported,
       s.id AS feedback_id, s.name, s.value, s.source, s.user_id, s.timestamp,
       greatest(s.received_at, i.received_at) AS received_at
FROM said s JOIN interactions i ON i.id = s.interaction_id
ORDER BY answered_at

-- name: advance
UPDATE judgements_position SET last_batch = $until
