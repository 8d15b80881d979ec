-- name: new
-- The events stored since the last booking, by the number of the transaction that stored them: Kafka's offsets restart when a
-- topic is recreated, and a replayed dead letter has an old one. Imported files are history without costs and gains here.
CREATE OR REPLACE TEMP TABLE new_interactions AS
SELECT rowid AS answer, workload, coalesce(conversation_id, id) AS conversation, timestamp::DATE AS day FROM interactions
WHERE batch > (SELECT last_batch FROM ledger_position) AND NOT starts_with(topic, 'import:');

CREATE OR REPLACE TEMP TABLE new_feedback AS
SELECT id, interaction_id FROM feedback
WHERE batch > (SELECT last_batch FROM ledger_position) AND NOT starts_with(topic, 'import:')
    AND (name IN ('time_saved_seconds', 'escalated', 'resolved') OR source = 'expert');

-- name: touched
-- Conversations with new events. A conversation counts anew each day, because some never end.
CREATE OR REPLACE TEMP TABLE touched AS
SELECT workload, conversation, day FROM new_interactions
UNION
SELECT workload, coalesce(conversation_id, id), timestamp::DATE
FROM interactions SEMI JOIN new_feedback ON interactions.id = new_feedback.interaction_id
WHERE NOT starts_with(topic, 'import:')

-- name: touched_days
SELECT DISTINCT day FROM touched ORDER BY day

-- name: chosen
-- The conversations to count next.
CREATE OR REPLACE TEMP TABLE chosen AS FROM touched

-- name: earlier_days
SELECT DISTINCT timestamp::DATE AS day FROM interactions
WHERE workload = $workload AND NOT starts_with(topic, 'import:')
ORDER BY day

-- name: chosen_earlier
-- The conversations of a workload and a day without new events.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT DISTINCT workload, coalesce(conversation_id, id) AS conversation, timestamp::DATE AS day FROM interactions
WHERE workload = $workload AND timestamp >= $day::DATE AND timestamp < $day::DATE + 1 AND NOT starts_with(topic, 'import:')
EXCEPT
FROM touched

-- name: counted
-- All interactions of a day in its chosen conversations.
WITH conversations AS (
    SELECT workload, conversation FROM chosen WHERE day = $day
), answers AS (
    SELECT interactions.rowid AS answer, *, coalesce(conversation_id, id) AS conversation,
           -- An answer of the incumbent that replaced one of a version is booked for the version, as votes on it count.
           CASE WHEN NOT ends_with(interactions.model, '@cascade') THEN
               nullif(version_of(interactions.workload, regexp_replace(interactions.model, '\+cascade$', '')), 'base')
           END AS version
    FROM interactions SEMI JOIN conversations ON conversations.workload = interactions.workload
        AND conversations.conversation = coalesce(interactions.conversation_id, interactions.id)
    WHERE timestamp >= $day::DATE AND timestamp < $day::DATE + 1  -- skips whole row groups
        AND NOT starts_with(topic, 'import:')
)
SELECT answer, answers.id, answers.workload, conversation, answers.version, promotions.id AS promotion, timestamp,
       timestamp::DATE AS day,
       answer IN (SELECT answer FROM new_interactions) AS is_new, answers.model,
       coalesce(attributes ->> '$.incumbent_model', attributes ->> '$.incumbent') IS NOT NULL
           OR regexp_matches(answers.model, '[@+]cascade$') AS is_bought,
       cost AS reported_cost,
       greatest(coalesce(input_tokens, 0)::DOUBLE + coalesce(output_tokens, 0)::DOUBLE, 0) AS tokens,
       try_cast(attributes ->> 'third_party_cost' AS DOUBLE) AS reported_third_party
FROM answers ASOF LEFT JOIN (SELECT * FROM promotions WHERE event IN ('promoted', 'rolled_back')) AS promotions
    ON promotions.workload = answers.workload AND promotions.created_at <= answers.timestamp

-- name: days
SELECT DISTINCT workload, day FROM counted

-- name: rates
-- The rates of each counted workload and day, named as in the configuration, its limits, and the model of its incumbent.
CREATE OR REPLACE TEMP TABLE rates (
    workload VARCHAR, day DATE, hourly_rate DOUBLE, escalation_cost DOUBLE, baseline_escalation_rate DOUBLE,
    ticket_cost DOUBLE, third_party_cost DOUBLE, token_cost DOUBLE, expert_hourly_rate DOUBLE, expert_hours DOUBLE,
    maximum_seconds DOUBLE, maximum_amount DOUBLE, incumbent VARCHAR
)

-- name: rate
INSERT INTO rates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: reported
-- The feedback on counted interactions.
CREATE OR REPLACE TEMP TABLE reported AS
WITH limits AS (
    SELECT id AS interaction_id, min(maximum_seconds) AS maximum_seconds
    FROM counted JOIN rates USING (workload, day)
    GROUP BY id
)
SELECT interaction_id, name, value::VARCHAR AS value, source, coalesce(user_id, '') AS user_id, timestamp, id,
       CASE WHEN name = 'time_saved_seconds' THEN try_cast(value::VARCHAR AS DOUBLE) END AS seconds,
       id IN (SELECT id FROM new_feedback) AS is_new, maximum_seconds
FROM feedback JOIN limits USING (interaction_id)
WHERE NOT starts_with(topic, 'import:')

-- name: escalating
-- Workloads that report escalations, and whether they did so before this booking: without reports, an escalation is not known to
-- be avoided.
CREATE OR REPLACE TEMP TABLE escalating AS
SELECT DISTINCT workload, true AS did FROM ledger WHERE item = 'escalations_avoided'

-- name: reporting
-- Workloads with reports on days with rates of which the ledger has no entry.
SELECT DISTINCT counted.workload FROM counted JOIN reported ON reported.interaction_id = counted.id JOIN rates USING (workload, day)
WHERE name = 'escalated' AND escalation_cost > 0 AND baseline_escalation_rate IS NOT NULL
    AND counted.workload NOT IN (SELECT workload FROM escalating)
ORDER BY ALL

-- name: days_reported
-- The days of a workload's answers whose escalations were reported before this booking.
SELECT DISTINCT interactions.timestamp::DATE AS day
FROM interactions JOIN feedback ON feedback.interaction_id = interactions.id, ledger_position
WHERE workload = $workload AND name = 'escalated' AND NOT starts_with(interactions.topic, 'import:')
    AND NOT starts_with(feedback.topic, 'import:')
    AND greatest(interactions.batch, feedback.batch, 0) <= last_batch

-- name: escalates
INSERT INTO escalating VALUES ($workload, $did)

-- name: states
-- Each interaction as known now (sign 1) and at the last booking (sign -1): the difference is booked. A reported number
-- beyond a limit is a mistake: it counts as unknown, and is counted. (NaN is greater than any limit.)
CREATE OR REPLACE TEMP TABLE states AS
WITH known AS (
    SELECT signs.sign, interaction_id,
        -- The latest time saved and the latest resolution count; an escalation cannot be undone.
        arg_max(seconds, (timestamp, id)) FILTER (seconds BETWEEN 0 AND maximum_seconds) / 3600 AS hours,
        count(*) FILTER (seconds > maximum_seconds) AS too_long,
        bool_or(value = 'true') FILTER (name = 'escalated') AS escalated,
        arg_max(value = 'true', (timestamp, id)) FILTER (name = 'resolved' AND value IN ('true', 'false')) AS resolved,
        count(DISTINCT user_id) FILTER (source = 'expert') AS experts
    FROM reported JOIN (VALUES (-1), (1)) AS signs(sign) ON signs.sign = 1 OR NOT is_new
    GROUP BY signs.sign, interaction_id
)
SELECT signs.sign, counted.*, rates.* EXCLUDE (workload, day), hours,
       did IS NOT NULL AND (did OR signs.sign = 1) AS reports_escalations,
       coalesce(escalated, false) AS escalated, resolved, coalesce(experts, 0) AS experts,
       coalesce(too_long, 0) AS too_long,
       CASE WHEN reported_cost BETWEEN 0 AND maximum_amount THEN reported_cost END AS cost,
       CASE WHEN reported_third_party BETWEEN 0 AND maximum_amount THEN reported_third_party END AS third_party,
       cost IS NULL AND tokens * token_cost > maximum_amount AS too_many_tokens,
       -- Only an answer of a version or of the base model replaces a call: not that of the third party itself, which apps that
       -- pass the gateway store under its own name, nor that of a person.
       NOT is_bought AND model <> 'demonstration'
           AND NOT coalesce(model = incumbent OR starts_with(model, incumbent || '-'), false) AS replaces_call
FROM counted JOIN rates USING (workload, day) JOIN (VALUES (-1), (1)) AS signs(sign) ON signs.sign = 1 OR NOT is_new
LEFT JOIN known ON known.sign = signs.sign AND known.interaction_id = counted.id
LEFT JOIN escalating USING (workload)

-- name: lines
-- Each item of each interaction, in its own unit. The outcome of a conversation counts once: the expected escalation at its
-- first answer, a real one at the first escalated answer, an avoided ticket at the last answer with a resolution.
CREATE OR REPLACE TEMP TABLE lines AS
WITH conversations AS (
    SELECT sign, reports_escalations, baseline_escalation_rate, escalation_cost, ticket_cost,
           arg_min(answer, (timestamp, answer)) AS first,
           arg_min(answer, (timestamp, answer)) FILTER (escalated) AS escalated,
           arg_max(answer, (timestamp, answer)) FILTER (resolved IS NOT NULL) AS settled,
           arg_max(resolved, (timestamp, answer)) FILTER (resolved IS NOT NULL) AS resolved
    FROM states
    GROUP BY sign, reports_escalations, baseline_escalation_rate, escalation_cost, ticket_cost, workload, conversation, day
)
FROM (
    SELECT sign, answer, 'gain' AS kind, 'time_saved' AS item, hours AS quantity, 'hours' AS unit, hourly_rate AS rate
    FROM states
    UNION ALL
    SELECT sign, first, 'gain', 'escalations_avoided', baseline_escalation_rate, 'escalations', escalation_cost
    FROM conversations WHERE reports_escalations
    UNION ALL
    SELECT sign, escalated, 'gain', 'escalations_avoided', -1, 'escalations', escalation_cost
    FROM conversations WHERE reports_escalations AND escalated IS NOT NULL AND baseline_escalation_rate IS NOT NULL
    UNION ALL
    SELECT sign, settled, 'gain', 'tickets_avoided', 1, 'tickets', ticket_cost
    FROM conversations WHERE resolved AND escalated IS NULL
    UNION ALL
    SELECT sign, answer, 'gain', 'third_party_replaced', third_party, $currency, 1
    FROM states
    UNION ALL
    SELECT sign, answer, 'gain', 'third_party_replaced', 1, 'calls', third_party_cost
    FROM states WHERE reported_third_party IS NULL AND replaces_call
    UNION ALL
    SELECT sign, answer, 'cost', 'inference', cost, $currency, 1
    FROM states
    UNION ALL
    SELECT sign, answer, 'cost', 'inference', tokens, 'tokens', token_cost
    FROM states WHERE cost IS NULL AND NOT too_many_tokens
    UNION ALL
    SELECT sign, answer, 'cost', 'data_work', experts * expert_hours, 'hours', expert_hourly_rate
    FROM states
)
WHERE quantity <> 0 AND rate > 0

-- name: left_out
WITH counted AS (
    SELECT sign, workload, 'time_saved' AS item, too_long AS reported FROM states
    UNION ALL
    SELECT sign, workload, 'third_party_replaced', 1 FROM states WHERE reported_third_party > maximum_amount
    UNION ALL
    SELECT sign, workload, 'inference', 1 FROM states WHERE reported_cost > maximum_amount
    UNION ALL
    SELECT sign, workload, 'inference', 1 FROM states WHERE too_many_tokens
)
SELECT workload, item, sum(sign * reported)::BIGINT AS reported
FROM counted
GROUP BY workload, item
HAVING sum(sign * reported) > 0
ORDER BY workload, item

-- name: entries
WITH changes AS (
    SELECT answer, kind, item, unit, rate, sum(sign * quantity) AS quantity
    FROM lines
    GROUP BY answer, kind, item, unit, rate
)
SELECT workload, version, promotion, min(timestamp) AS period_start, max(timestamp) AS period_end, kind, item,
       fsum(quantity) AS quantity, unit, rate, count(*) AS answers
FROM changes JOIN counted USING (answer)
WHERE quantity <> 0
GROUP BY workload, version, promotion, day, kind, item, unit, rate
-- The first entry of escalations is kept whatever it amounts to: by it the workload is known to report them.
HAVING fsum(quantity) <> 0
    OR (item = 'escalations_avoided' AND workload IN (SELECT workload FROM escalating WHERE NOT did))
ORDER BY ALL

-- name: moments
-- Adds each conversation as known now, and subtracts it as known at the last booking.
CREATE OR REPLACE TEMP TABLE added_moments AS
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
SELECT workload, version, promotion, hour, sum(sign) AS conversations, sum(sign * n) AS interactions, sum(sign * gain) AS gain,
       sum(sign * cost) AS cost, sum(sign * gain * gain) AS gain_squared, sum(sign * cost * cost) AS cost_squared,
       sum(sign * gain * cost) AS gain_cost
FROM sums
GROUP BY ALL

-- name: add_moments
INSERT INTO ledger_moments BY NAME
SELECT workload, version, promotion, hour, conversations, interactions, gain, cost, gain_squared, cost_squared, gain_cost
FROM added_moments
ON CONFLICT DO UPDATE SET
    conversations = conversations + excluded.conversations,
    interactions = interactions + excluded.interactions,
    gain = gain + excluded.gain,
    cost = cost + excluded.cost,
    gain_squared = gain_squared + excluded.gain_squared,
    cost_squared = cost_squared + excluded.cost_squared,
    gain_cost = gain_cost + excluded.gain_cost

-- name: outcomes
-- Counts the outcome of each conversation as known now, in place of the one at the last booking.
INSERT INTO ledger_outcomes
WITH conversations AS (
    SELECT sign, workload, day, conversation, bool_or(escalated) AS escalated,
           arg_max(resolved, (timestamp, answer)) FILTER (resolved IS NOT NULL) AS resolved
    FROM states
    GROUP BY sign, workload, day, conversation
)
SELECT workload, day,
       CASE WHEN escalated THEN 'escalated' WHEN resolved THEN 'resolved' WHEN NOT resolved THEN 'unresolved' ELSE 'unknown'
       END AS outcome,
       sum(sign)
FROM conversations
GROUP BY ALL
HAVING sum(sign) <> 0
ON CONFLICT DO UPDATE SET conversations = conversations + excluded.conversations

-- name: runs
-- Runs whose $item is not booked. The cost belongs to the version that the run produced, which may serve later or never: see
-- `changes` in roi.sql for the promotion. Without a version it belongs to the one in service when the run ended.
SELECT runs.id, runs.workload, started_at AS period_start, finished_at AS period_end,
       CASE $item
           WHEN 'training' THEN (coalesce(train_seconds, 0) + coalesce(evaluate_seconds, 0)) / 3600
           WHEN 'judging' THEN judge_tokens
       END AS quantity,
       coalesce(runs.version, served.version) AS version,
       CASE WHEN runs.version IS NULL THEN served.id END AS promotion
FROM runs
ASOF LEFT JOIN (SELECT * FROM promotions WHERE event IN ('promoted', 'rolled_back')) AS served
    ON served.workload = runs.workload AND served.created_at <= runs.finished_at
WHERE finished_at IS NOT NULL AND quantity > 0
    AND runs.id NOT IN (SELECT reference FROM ledger WHERE item = $item)
ORDER BY finished_at, runs.id

-- name: spent
-- Tokens of answers in shadow stored since the last booking, and of judging them.
CREATE OR REPLACE TEMP TABLE spent AS
WITH answered AS (
    SELECT value ->> '$.model' AS name, timestamp,
           coalesce(try_cast(value ->> '$.input_tokens' AS DOUBLE), 0) AS input,
           coalesce(try_cast(value ->> '$.output_tokens' AS DOUBLE), 0) AS output
    FROM shadow_answers
    WHERE batch > (SELECT last_batch FROM ledger_position) AND NOT starts_with(topic, 'import:')
)
SELECT 'shadow' AS item, models.workload, models.version, timestamp, timestamp::DATE AS day, input + output AS tokens,
       least(input, output) < 0 AS is_negative
FROM answered JOIN models ON models.workload || '@' || models.version = answered.name
UNION ALL
SELECT 'shadow_judging', rollouts.workload, rollouts.version, scored_at, scored_at::DATE, tokens, false
FROM shadow_scores JOIN rollouts ON rollouts.id = experiment
WHERE NOT booked

-- name: spent_days
SELECT DISTINCT item, workload, day FROM spent

-- name: token_rates
CREATE OR REPLACE TEMP TABLE token_rates (item VARCHAR, workload VARCHAR, day DATE, rate DOUBLE, maximum_amount DOUBLE)

-- name: token_rate
INSERT INTO token_rates VALUES (?, ?, ?, ?, ?)

-- name: worth
-- What the tokens of an answer amount to. An impossible amount is a mistake, as among the states: it is counted.
CREATE OR REPLACE TEMP TABLE worth AS
SELECT *, is_negative OR NOT tokens * rate BETWEEN 0 AND maximum_amount AS is_mistake
FROM spent JOIN token_rates USING (item, workload, day)

-- name: shadow
SELECT item, workload, version, min(timestamp) AS period_start, max(timestamp) AS period_end, fsum(tokens) AS quantity, rate,
       count(*) AS answers
FROM worth
WHERE tokens > 0 AND NOT is_mistake
GROUP BY item, workload, version, day, rate
ORDER BY ALL

-- name: shadow_left_out
SELECT workload, item, count(*) AS reported FROM worth WHERE is_mistake GROUP BY workload, item ORDER BY ALL

-- name: shadow_booked
UPDATE shadow_scores SET booked = true WHERE NOT booked

-- name: since
SELECT booked_at AS since FROM ledger_position

-- name: first_received
SELECT min(received_at) AS since FROM interactions

-- name: workloads
SELECT DISTINCT workload FROM answer_minutes ORDER BY workload

-- name: changes
SELECT id, created_at, version FROM promotions
WHERE workload = $workload AND event IN ('promoted', 'rolled_back')
ORDER BY created_at

-- name: advance
-- Time has no cost before the first event, and none twice if the clock is set back.
UPDATE ledger_position SET last_batch = (SELECT last FROM batches), booked_at = greatest(booked_at, $now)
WHERE booked_at IS NOT NULL OR EXISTS (FROM interactions) OR EXISTS (FROM feedback)
