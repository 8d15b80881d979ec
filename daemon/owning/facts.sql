-- What the warehouse knows of a workload's traffic and of the feedback on it.

-- name: newest
SELECT max(timestamp) AS timestamp FROM traffic WHERE workload = $workload

-- name: traffic
SELECT count(*) AS answers, min(timestamp) AS first_at, max(by_hour) AS busiest_hour FROM (
    SELECT timestamp, count(*) OVER (PARTITION BY date_trunc('hour', timestamp)) AS by_hour
    FROM traffic WHERE workload = $workload AND timestamp > $since
)

-- name: tokens
-- Of the newest answers. Where an event has no tokens, they are estimated from the bytes of its texts. The answers of own
-- versions, and of an own base model, cost what a machine costs: `bought` are all others.
WITH newest AS (
    SELECT * FROM traffic WHERE workload = $workload AND timestamp > $since ORDER BY timestamp DESC, id LIMIT $sample
), counted AS (
    SELECT input_tokens IS NOT NULL AND output_tokens IS NOT NULL AS known, cost,
           coalesce(input_tokens,
                    (strlen(messages::VARCHAR) + coalesce(strlen((attributes -> '$.tools')::VARCHAR), 0)) / $bytes) AS input,
           coalesce(output_tokens,
                    (strlen(response) + coalesce(strlen((attributes -> '$.tool_calls')::VARCHAR), 0)) / $bytes) AS output,
           NOT starts_with(model, workload || '@') OR attributes ->> '$.incumbent' IS NOT NULL AS bought
    FROM newest
)
SELECT count(*) AS answers, count(*) FILTER (known) AS known, avg(input) AS input, avg(output) AS output,
       quantile_cont(input + output, 0.99) AS longest,
       count(*) FILTER (bought) AS bought, count(cost) FILTER (bought) AS priced,
       coalesce(sum(cost) FILTER (bought), 0.0) AS cost,
       coalesce(sum(input) FILTER (bought AND cost IS NULL), 0.0) AS unpriced_input,
       coalesce(sum(output) FILTER (bought AND cost IS NULL), 0.0) AS unpriced_output,
       coalesce(avg(input) FILTER (bought), 0.0) AS bought_input, coalesce(avg(output) FILTER (bought), 0.0) AS bought_output
FROM counted

-- name: feedback
SELECT f.name, f.source, count(DISTINCT f.interaction_id) AS answers,
       count(DISTINCT f.interaction_id) FILTER (approves(f.name, f.value)) AS good,
       count(DISTINCT f.interaction_id) FILTER (NOT approves(f.name, f.value)) AS bad
FROM feedback f JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload
GROUP BY ALL ORDER BY answers DESC, f.name, f.source

-- name: judged
-- Conversations by what people had stated about their answers until then: what they corrected, else what they called good.
-- A demonstration is taught, and nothing can be compared with it.
WITH stated AS (
    SELECT coalesce(i.conversation_id, i.id) AS conversation, bool_or(i.model = 'demonstration') AS demonstrated,
           bool_or(f.name = 'correction') AS corrected, bool_or(coalesce(approves(f.name, f.value), false)) AS good,
           bool_or(coalesce(NOT approves(f.name, f.value), false)) AS bad,
           bool_or(coalesce(i.attributes ->> '$.incumbent_model' = $incumbent, i.attributes ->> '$.incumbent' IS NOT NULL)
                   OR coalesce(i.model = $incumbent OR starts_with(i.model, $incumbent || '-'), false)) AS bought,
           max(f.timestamp) AS stated_at
    FROM feedback f JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
        AND f.source IN ('user', 'expert') AND f.received_at <= coalesce($until, f.received_at)
    GROUP BY 1
)
SELECT count(*) FILTER (demonstrated) AS demonstrated,
       count(*) FILTER (corrected AND NOT demonstrated) AS corrected,
       count(*) FILTER (good AND NOT corrected AND NOT demonstrated) AS good,
       count(*) FILTER (good AND NOT corrected AND NOT demonstrated AND bought) AS good_of_incumbent,
       count(*) FILTER (bad AND NOT corrected AND NOT demonstrated) AS bad,
       count(*) FILTER ((good OR bad OR corrected) AND NOT demonstrated) AS rated,
       count(*) FILTER (corrected AND NOT demonstrated AND stated_at > $since) AS corrected_lately,
       count(*) FILTER (good AND NOT corrected AND NOT demonstrated AND stated_at > $since) AS good_lately
FROM stated

-- name: dataset
-- The last dataset: its rows, and the distinct questions among them by split.
SELECT train - replay AS train, holdout, created_at FROM datasets WHERE workload = $workload ORDER BY created_at DESC LIMIT 1

-- name: trained
-- The latest trainings of this workload.
SELECT base_model, (manifest -> 'training' ->> 'tokens')::DOUBLE AS tokens, (manifest -> 'training' ->> 'seconds')::DOUBLE AS seconds
FROM models
WHERE workload = $workload AND (manifest -> 'training' ->> 'seconds')::DOUBLE > 0 AND (manifest -> 'training' ->> 'tokens')::DOUBLE > 0
ORDER BY created_at DESC LIMIT 5
