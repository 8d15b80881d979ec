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

-- name: located
-- The answers that feedback is about, of which something came: their ids are looked for once in all that is stored.
CREATE OR REPLACE TEMP TABLE located AS
SELECT id, timestamp, workload, model, conversation_id, user_id, topic, received_at FROM interactions
WHERE id IN (
    SELECT interaction_id FROM feedback WHERE interaction_id IN (SELECT id FROM touched) OR batch > $since
)

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
       coalesce(i.conversation_id, i.id) AS conversation, i.model, i.user_id AS asker_id,
       s.id AS feedback_id, s.name, s.value, s.source, s.user_id, s.timestamp,
       greatest(s.received_at, i.received_at) AS received_at
FROM said s JOIN located i ON i.id = s.interaction_id
ORDER BY answered_at

-- name: count_feedback
-- What came since the last look, and what was there before the answer that came since then.
INSERT INTO feedback_totals
WITH met AS (
    SELECT workload, name, source
    FROM feedback JOIN located ON located.id = interaction_id
    WHERE feedback.batch > $since
    UNION ALL
    SELECT workload, name, source
    FROM interactions JOIN feedback ON interactions.id = interaction_id
    WHERE interactions.batch > $since AND (feedback.batch <= $since OR feedback.batch IS NULL)
)
SELECT workload, CASE WHEN name IN (SELECT unnest($reserved::VARCHAR[])) THEN name ELSE 'other' END AS name, source, count(*)
FROM met
GROUP BY ALL
ON CONFLICT DO UPDATE SET total = total + excluded.total

-- name: advance
UPDATE judgements_position SET last_batch = $until

-- name: feedback_totals
SELECT name, source, total FROM feedback_totals WHERE workload = $workload

-- name: latest_complaints
-- By name and source, the last answer that was called unhelpful or invented, or was corrected.
SELECT name, source, max_by(interaction_id, received_at) AS interaction_id, max(received_at) AS received_at
FROM judgements
WHERE workload = $workload AND received_at >= $since AND (value = (name = 'hallucination') OR name = 'correction')
GROUP BY name, source

-- name: comparable_votes
-- One row for each interaction, name and source: the last vote. Of an account the first answers that it voted on count, so
-- many of each name and version.
CREATE OR REPLACE TEMP TABLE comparable_votes AS
WITH latest AS (
    SELECT interaction_id, name, source,
           max_by(judgements, (timestamp, received_at, feedback_id)) AS last,
           min(timestamp) AS first_at
    FROM judgements
    WHERE workload = $workload AND name IN ('helpful', 'hallucination') AND NOT demonstration
      AND answered_at >= $start AND answered_at < $end
      AND ($mature_after::INTERVAL IS NULL OR timestamp <= answered_at + $mature_after::INTERVAL)
      AND ($period::INTERVAL IS NULL OR timestamp <= $now::TIMESTAMP - to_microseconds(
          (epoch_us($now::TIMESTAMP) - epoch_us(answered_at) - 1) // epoch_us($period::INTERVAL) * epoch_us($period::INTERVAL)
      ))
    GROUP BY interaction_id, name, source
), votes AS (
    SELECT interaction_id, last.conversation, last.answered_at, last.model, last.imported, name, source, last.value,
           version_of($workload, last.model) AS version,
           CASE WHEN source = 'user' THEN coalesce(last.user_id, last.asker_id) END AS account,
           last.timestamp AS voted_at, first_at
    FROM latest
)
SELECT * EXCLUDE (first_at), coalesce('account ' || account, 'conversation ' || conversation, interaction_id) AS unit
FROM votes
QUALIFY account IS NULL OR row_number() OVER (
    PARTITION BY account, name, source, version ORDER BY first_at, answered_at, interaction_id
) <= $per_account
