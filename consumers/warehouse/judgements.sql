-- name: behind
SELECT p.last_batch AS since, b.last AS until FROM judgements_position p, batches b WHERE p.last_batch <> b.last

-- name: touched
-- Interactions stored after $since, or with feedback stored after it; before the first update, all with feedback.
CREATE OR REPLACE TEMP TABLE touched AS
SELECT interaction_id AS id FROM feedback
WHERE name IN ('helpful', 'hallucination', 'correction') AND (batch > $since OR $since < 0)
UNION
SELECT id FROM interactions WHERE batch > $since AND $since >= 0

-- name: given
CREATE OR REPLACE TEMP TABLE touched AS SELECT DISTINCT unnest($ids::VARCHAR[]) AS id

-- name: located
-- The answers of new feedback, located by one scan of all interactions.
CREATE OR REPLACE TEMP TABLE located AS
SELECT id, timestamp, workload, model, conversation_id, user_id, topic, received_at FROM interactions
WHERE id IN (
    SELECT interaction_id FROM feedback WHERE interaction_id IN (SELECT id FROM touched) OR batch > $since
)

-- name: drop
DELETE FROM judgements WHERE interaction_id IN (SELECT id FROM touched)

-- name: make
INSERT INTO judgements BY NAME
WITH judged AS (
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
FROM judged s JOIN located i ON i.id = s.interaction_id
ORDER BY answered_at

-- name: count_feedback
-- New feedback on stored answers, and earlier feedback on new answers.
INSERT INTO feedback_totals
WITH joined AS (
    SELECT workload, name, source
    FROM feedback JOIN located ON located.id = interaction_id
    WHERE feedback.batch > $since
    UNION ALL
    SELECT workload, name, source
    FROM interactions JOIN feedback ON interactions.id = interaction_id
    WHERE interactions.batch > $since AND (feedback.batch <= $since OR feedback.batch IS NULL)
)
SELECT workload, CASE WHEN name IN (SELECT unnest($reserved::VARCHAR[])) THEN name ELSE 'other' END AS name, source, count(*)
FROM joined
GROUP BY ALL
ON CONFLICT DO UPDATE SET total = total + excluded.total

-- name: advance
UPDATE judgements_position SET last_batch = $until

-- name: feedback_totals
SELECT name, source, total FROM feedback_totals WHERE workload = $workload

-- name: latest_complaints
-- The latest complaint (unhelpful, hallucination or correction) by name and source.
SELECT name, source, max_by(interaction_id, received_at) AS interaction_id, max(received_at) AS received_at
FROM judgements
WHERE workload = $workload AND received_at >= $since AND (value = (name = 'hallucination') OR name = 'correction')
GROUP BY name, source

-- name: comparable_votes
-- One row for each interaction, name and source: the last vote. Votes of experts on answers that label requests are about
-- do not count: those answers were chosen because they are likely wrong, or drawn at another rate. Nor do votes of banned
-- accounts.
CREATE OR REPLACE TEMP TABLE comparable_votes AS
WITH latest AS (
    SELECT interaction_id, name, source,
           max_by(judgements, (timestamp, received_at, feedback_id)) AS last
    FROM judgements
    WHERE workload = $workload AND name IN ('helpful', 'hallucination') AND NOT demonstration
      AND answered_at >= $start AND answered_at < $end
      AND ($mature_after::INTERVAL IS NULL OR timestamp <= answered_at + $mature_after::INTERVAL)
      AND ($period::INTERVAL IS NULL OR timestamp <= $now::TIMESTAMP - to_microseconds(
          (epoch_us($now::TIMESTAMP) - epoch_us(answered_at) - 1) // epoch_us($period::INTERVAL) * epoch_us($period::INTERVAL)
      ))
      AND NOT (source = 'expert' AND interaction_id IN (
          SELECT interaction_id FROM label_requests WHERE workload = $workload
      ))
      AND NOT is_banned($workload, source, user_id, asker_id)
    GROUP BY interaction_id, name, source
), votes AS (
    SELECT interaction_id, last.conversation, last.answered_at, last.model, last.imported, name, source, last.value,
           -- An answer of the incumbent that replaced one of a version counts for the version: users got it. See `leave_out`.
           version_of($workload, regexp_replace(last.model, '\+cascade$', '')) AS version,
           CASE WHEN source = 'user' THEN coalesce(last.user_id, last.asker_id) END AS account,
           last.timestamp AS voted_at
    FROM latest
)
SELECT *, coalesce('account ' || account, 'conversation ' || conversation, interaction_id) AS unit
FROM votes

-- name: replaced
-- Whether answers of the incumbent that replaced those of a version have votes.
SELECT count(*) > 0 FROM comparable_votes WHERE ends_with(model, '+cascade')

-- name: certain
-- How certain the versions that may be compared were of their answers in a span; -inf: the incumbent replaced the answer
-- because the version was not certain enough of it.
CREATE OR REPLACE TEMP TABLE certain AS
WITH named AS (
    SELECT coalesce(version, 'base') AS version, bool_or(alias = 'champion') AS champion
    FROM (
        SELECT version, alias FROM aliases WHERE workload = $workload AND alias IN ('champion', 'previous', 'canary')
        UNION ALL
        SELECT NULL, 'champion' WHERE NOT EXISTS (FROM aliases WHERE workload = $workload AND alias = 'champion')
    )
    GROUP BY ALL
), answered AS (
    SELECT version_of($workload, regexp_replace(model, '\+cascade$', '')) AS version,
           CASE WHEN NOT ends_with(model, '+cascade') THEN try_cast(attributes ->> '$.confidence' AS DOUBLE)
                WHEN attributes ->> '$.cascade' = 'confidence' THEN '-inf'::DOUBLE END AS confidence
    FROM traffic
    WHERE workload = $workload AND timestamp >= $start AND timestamp < $end AND attributes IS NOT NULL
)
SELECT version, champion, confidence FROM answered JOIN named USING (version) WHERE confidence IS NOT NULL

-- name: replaced_share
-- The largest share of a version's answers that was replaced; null: the champion cannot be compared by certainty with another.
SELECT CASE WHEN count(*) > 1 AND bool_or(champion) THEN max(share) END
FROM (
    SELECT version, bool_or(champion) AS champion, avg((confidence = '-inf')::INTEGER) AS share FROM certain GROUP BY version
)

-- name: leave_out
-- Of each version, leaves out this share of the answers, those that it was the least certain of. Replaced ones are the first.
UPDATE comparable_votes SET version = NULL
FROM traffic, (SELECT version, quantile_disc(confidence, $share) AS least FROM certain GROUP BY version) AS bounds
WHERE comparable_votes.version = bounds.version AND traffic.id = interaction_id AND traffic.workload = $workload
  AND traffic.timestamp >= $start AND traffic.timestamp < $end
  AND CASE WHEN ends_with(traffic.model, '+cascade') THEN attributes ->> '$.cascade' = 'confidence'
           ELSE try_cast(attributes ->> '$.confidence' AS DOUBLE) < least END
