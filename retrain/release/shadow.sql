-- name: pairs
-- The first answer of the champion in each conversation without a score, with the candidate's answer to the same question.
-- Also pairs with the score `unknown` that people have approved or corrected, each time that there is new feedback. The order
-- is drawn anew each time: pairs on which the judge gives no verdict stay without a score, and must not block others.
WITH asked AS (
    SELECT interaction_id, any_value(value) AS answer
    FROM shadow_answers
    WHERE timestamp >= $since AND value ->> '$.model' = $candidate
    GROUP BY interaction_id
), said AS (
    SELECT interaction_id,
           arg_max(value, (source = 'expert', timestamp, id)) FILTER (name = 'correction') AS correction,
           arg_max(value = 'true', (source = 'expert', timestamp, id)) FILTER (name = 'helpful') AS helpful,
           max(received_at) AS feedback_until
    FROM feedback
    WHERE timestamp >= $since AND name IN ('correction', 'helpful') AND source IN ('user', 'expert')
      AND interaction_id IN (SELECT interaction_id FROM asked)
    GROUP BY interaction_id
), answered AS (
    SELECT id AS interaction_id, coalesce(conversation_id, id) AS conversation, timestamp, messages, response, context,
           attributes -> '$.tools' AS tools, attributes -> '$.tool_calls' AS calls, asked.answer,
           correction, coalesce(helpful, false) AS helpful, feedback_until
    FROM interactions JOIN asked ON asked.interaction_id = id LEFT JOIN said ON said.interaction_id = id
    WHERE workload = $workload AND timestamp >= $since AND version_of(workload, model) = $previous
)
SELECT answered.*
FROM answered LEFT JOIN (SELECT * FROM shadow_scores WHERE experiment = $experiment) AS known USING (conversation)
WHERE known.scorer IS NULL
   OR (known.scorer = 'unknown' AND known.interaction_id = answered.interaction_id AND (correction IS NOT NULL OR helpful)
       AND answered.feedback_until > coalesce(known.feedback_until, '-infinity'::TIMESTAMP))
QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY timestamp, answered.interaction_id) = 1
ORDER BY hash(conversation, $now::TIMESTAMP), conversation
LIMIT $most

-- name: metric
-- The metric of the candidate's dataset.
SELECT card -> '$.metric' AS metric
FROM datasets JOIN models ON models.workload = datasets.workload AND models.dataset_version = datasets.version
WHERE models.workload = $workload AND models.version = $version

-- name: drop_score
DELETE FROM shadow_scores WHERE experiment = $experiment AND conversation = $conversation

-- name: remove
-- Shadow answers are needed while their rollout is in progress. Their results stay with the checks.
DELETE FROM shadow_answers
WHERE received_at < $before AND timestamp < coalesce(
    (SELECT min(created_at) FROM rollouts WHERE ended_at IS NULL), 'infinity'::TIMESTAMP)

-- name: remove_scores
DELETE FROM shadow_scores
WHERE experiment IN (SELECT id FROM rollouts WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND ended_at < $before)
