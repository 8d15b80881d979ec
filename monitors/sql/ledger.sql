-- name: new
-- The events that were stored since the last booking. They are told apart by their offsets, not by their times.
-- What was imported from files is history that nobody paid or was paid for here.
CREATE OR REPLACE TEMP TABLE new_interactions AS
SELECT interactions.rowid AS answer, id FROM interactions LEFT JOIN ledger_progress USING (topic, partition)
WHERE "offset" >= coalesce(next_offset, 0) AND NOT starts_with(topic, 'import:');

CREATE OR REPLACE TEMP TABLE new_feedback AS
SELECT id, interaction_id FROM feedback LEFT JOIN ledger_progress USING (topic, partition)
WHERE "offset" >= coalesce(next_offset, 0) AND NOT starts_with(topic, 'import:')
    AND (name IN ('time_saved_seconds', 'escalated', 'resolved') OR source = 'expert');

-- name: counted
-- All interactions of the conversations to which something new belongs; of these, `touched` are those that are new or
-- of which something new was said. What goes on on another day counts as another conversation: some never end.
CREATE OR REPLACE TEMP TABLE counted AS
WITH touched AS (
    SELECT id FROM new_interactions UNION SELECT interaction_id FROM new_feedback
), conversations AS (
    SELECT DISTINCT workload, coalesce(conversation_id, id) AS conversation, timestamp::DATE AS day
    FROM interactions SEMI JOIN touched USING (id)
    WHERE NOT starts_with(topic, 'import:')
), answers AS (
    SELECT interactions.rowid AS answer, *, coalesce(conversation_id, id) AS conversation,
           CASE WHEN starts_with(model, workload || '@') THEN nullif(substr(model, length(workload) + 2), 'base') END
               AS version
    FROM interactions SEMI JOIN conversations ON conversations.workload = interactions.workload
        AND conversations.conversation = coalesce(interactions.conversation_id, interactions.id)
        AND conversations.day = interactions.timestamp::DATE
    WHERE NOT starts_with(topic, 'import:')
)
SELECT answer, answers.id, answers.workload, conversation, answers.version, promotions.id AS promotion, timestamp,
       timestamp::DATE AS day,
       answer IN (SELECT answer FROM new_interactions) AS is_new,
       answers.id IN (SELECT id FROM touched) AS touched,
       CASE WHEN isfinite(cost) AND cost >= 0 THEN cost END AS cost,
       coalesce(input_tokens, 0) + coalesce(output_tokens, 0) AS tokens,
       try_cast(attributes ->> 'third_party_cost' AS DOUBLE) AS third_party
FROM answers ASOF LEFT JOIN promotions
    ON promotions.workload = answers.workload AND promotions.created_at <= answers.timestamp

-- name: days
SELECT DISTINCT day FROM counted

-- name: rates
-- Those of each day on which something is counted, named as in the configuration.
CREATE OR REPLACE TEMP TABLE rates (
    day DATE, hourly_rate DOUBLE, escalation_cost DOUBLE, baseline_escalation_rate DOUBLE, ticket_cost DOUBLE,
    third_party_cost DOUBLE, token_cost DOUBLE, expert_hourly_rate DOUBLE
)

-- name: rate
INSERT INTO rates VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: states
-- What is known of each interaction now (sign 1), and what was known at the last booking (sign -1): their difference
-- is what there is to book.
CREATE OR REPLACE TEMP TABLE states AS
WITH said AS (
    SELECT interaction_id, name, value::VARCHAR AS value, source, coalesce(user_id, '') AS user_id, timestamp, id,
           id IN (SELECT id FROM new_feedback) AS is_new
    FROM feedback SEMI JOIN counted ON counted.id = feedback.interaction_id
    WHERE NOT starts_with(topic, 'import:')
), known AS (
    SELECT signs.sign, interaction_id,
        -- Of time saved and of resolved the last word counts. An escalation stays one, whoever told of it.
        arg_max(try_cast(value AS DOUBLE), (timestamp, id)) FILTER (
            name = 'time_saved_seconds' AND isfinite(try_cast(value AS DOUBLE)) AND try_cast(value AS DOUBLE) >= 0
        ) / 3600 AS hours,
        bool_or(value = 'true') FILTER (name = 'escalated') AS escalated,
        arg_max(value = 'true', (timestamp, id)) FILTER (name = 'resolved' AND value IN ('true', 'false')) AS resolved,
        count(DISTINCT user_id) FILTER (source = 'expert') AS experts
    FROM said JOIN (VALUES (-1), (1)) AS signs(sign) ON signs.sign = 1 OR NOT is_new
    GROUP BY signs.sign, interaction_id
), telling AS (
    -- Workloads that tell of escalations at all: of one that never does, nothing is known to be avoided.
    SELECT workload FROM counted JOIN said ON said.interaction_id = counted.id WHERE name = 'escalated'
    UNION
    SELECT workload FROM ledger WHERE item = 'escalations_avoided'
)
SELECT signs.sign, counted.*, hours, workload IN (SELECT workload FROM telling) AS telling,
       coalesce(escalated, false) AS escalated, coalesce(resolved, false) AS resolved, coalesce(experts, 0) AS experts
FROM counted JOIN (VALUES (-1), (1)) AS signs(sign) ON signs.sign = 1 OR NOT is_new
LEFT JOIN known ON known.sign = signs.sign AND known.interaction_id = counted.id

-- name: lines
-- Each item of each interaction, in its own unit.
CREATE OR REPLACE TEMP TABLE lines AS
WITH priced AS (SELECT * FROM states JOIN rates USING (day))
FROM (
    SELECT sign, answer, 'gain' AS kind, 'time_saved' AS item, hours AS quantity, 'hours' AS unit, hourly_rate AS rate
    FROM priced
    UNION ALL
    SELECT sign, answer, 'gain', 'escalations_avoided', baseline_escalation_rate - escalated::INT, 'escalations',
           escalation_cost
    FROM priced WHERE telling
    UNION ALL
    SELECT sign, answer, 'gain', 'tickets_avoided', 1, 'tickets', ticket_cost
    FROM priced WHERE resolved AND NOT escalated
    UNION ALL
    SELECT sign, answer, 'gain', 'third_party_replaced', third_party, $currency, 1
    FROM priced WHERE isfinite(third_party) AND third_party >= 0
    UNION ALL
    SELECT sign, answer, 'gain', 'third_party_replaced', 1, 'calls', third_party_cost
    FROM priced WHERE third_party IS NULL
    UNION ALL
    SELECT sign, answer, 'cost', 'inference', cost, $currency, 1
    FROM priced WHERE cost IS NOT NULL
    UNION ALL
    SELECT sign, answer, 'cost', 'inference', tokens, 'tokens', token_cost
    FROM priced WHERE cost IS NULL
    UNION ALL
    SELECT sign, answer, 'cost', 'data_work', experts * $expert_hours, 'hours', expert_hourly_rate
    FROM priced
)
WHERE quantity <> 0 AND rate > 0

-- name: entries
WITH changes AS (
    SELECT answer, kind, item, unit, rate, sum(sign * quantity) AS quantity
    FROM lines
    GROUP BY answer, kind, item, unit, rate
)
SELECT workload, version, promotion, min(timestamp) AS period_start, max(timestamp) AS period_end, kind, item,
       fsum(quantity) AS quantity, unit, rate, count(*) AS answers
FROM changes JOIN (FROM counted WHERE touched) USING (answer)
WHERE quantity <> 0
GROUP BY workload, version, promotion, day, kind, item, unit, rate
ORDER BY ALL

-- name: moments
-- What each conversation counts now is added, what it counted at the last booking is taken away.
INSERT INTO ledger_moments
WITH worth AS (
    SELECT sign, answer, coalesce(sum(quantity * rate) FILTER (kind = 'gain'), 0) AS earned,
           coalesce(sum(quantity * rate) FILTER (kind = 'cost'), 0) AS spent
    FROM lines
    GROUP BY sign, answer
), sums AS (
    SELECT sign, workload, coalesce(version, '') AS version, coalesce(promotion, '') AS promotion, conversation,
           date_trunc('hour', min(timestamp)) AS hour, count(*) AS n,
           coalesce(sum(earned), 0) AS gain, coalesce(sum(spent), 0) AS cost
    FROM states LEFT JOIN worth USING (sign, answer)
    GROUP BY sign, workload, version, promotion, conversation, day
)
SELECT workload, version, promotion, hour, sum(sign), sum(sign * n), sum(sign * gain), sum(sign * cost),
       sum(sign * n * n), sum(sign * gain * gain), sum(sign * cost * cost), sum(sign * gain * n), sum(sign * gain * cost)
FROM sums
GROUP BY ALL
ON CONFLICT DO UPDATE SET
    conversations = conversations + excluded.conversations,
    interactions = interactions + excluded.interactions,
    gain = gain + excluded.gain,
    cost = cost + excluded.cost,
    interactions_squared = interactions_squared + excluded.interactions_squared,
    gain_squared = gain_squared + excluded.gain_squared,
    cost_squared = cost_squared + excluded.cost_squared,
    gain_interactions = gain_interactions + excluded.gain_interactions,
    gain_cost = gain_cost + excluded.gain_cost

-- name: training
-- What a run took is a cost of the promotion that it led to, else of the version that was in service when it ended.
SELECT runs.id, runs.workload, started_at AS period_start, finished_at AS period_end,
       (coalesce(train_seconds, 0) + coalesce(evaluate_seconds, 0)) / 3600 AS hours,
       CASE WHEN led.id IS NULL THEN served.version ELSE led.version END AS version,
       coalesce(led.id, served.id) AS promotion
FROM runs
LEFT JOIN LATERAL (
    SELECT promotions.id, promotions.version FROM promotions
    WHERE promotions.workload = runs.workload AND promotions.version = runs.version AND event = 'promoted'
        AND created_at >= runs.started_at
    ORDER BY created_at LIMIT 1
) AS led ON true
ASOF LEFT JOIN promotions AS served ON served.workload = runs.workload AND served.created_at <= runs.finished_at
WHERE finished_at IS NOT NULL AND hours > 0
    AND runs.id NOT IN (SELECT reference FROM ledger WHERE item = 'training')
ORDER BY finished_at, runs.id

-- name: since
SELECT coalesce((SELECT max(booked_at) FROM ledger_progress), (SELECT min(received_at) FROM interactions)) AS since

-- name: workloads
SELECT DISTINCT workload FROM interactions ORDER BY workload

-- name: changes
SELECT id, created_at, version FROM promotions WHERE workload = $workload ORDER BY created_at

-- name: advance
INSERT INTO ledger_progress
SELECT topic, partition, max("offset") + 1, $now
FROM (SELECT topic, partition, "offset" FROM interactions UNION ALL SELECT topic, partition, "offset" FROM feedback)
GROUP BY topic, partition
ON CONFLICT DO UPDATE SET next_offset = greatest(next_offset, excluded.next_offset), booked_at = excluded.booked_at
