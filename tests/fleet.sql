-- One in ten falls to a third in the last three days, one in ten has no ratings, the others keep theirs. Where it falls,
-- users ask something new since then.
CREATE OR REPLACE TEMP TABLE fleet AS
SELECT n, ['support', 'billing', 'it', 'hr', 'sales'][1 + n % 5] || '.'
           || ['refunds', 'dunning', 'vpn', 'payroll', 'leads', 'delivery', 'warranty'][1 + n % 7] || '-' || n AS workload,
       n % 10 = 3 AS falls, n % 10 = 7 AS unrated, 0.6 + 0.35 * (hash(n) % 1000) / 1000 AS helpful
FROM range($workloads) t(n);

INSERT INTO interactions BY NAME
SELECT 'i' || f.n || '-' || k AS id, $now::TIMESTAMP - to_seconds(k * 60) AS timestamp, f.workload,
       f.workload || CASE WHEN f.n % 3 > 0 THEN '@3f2a91c0' ELSE '@base' END AS model,
       '[{"role": "user", "content": "' || CASE WHEN f.falls AND k < least(72 * 60, $each / 2) AND k % 4 < 3 THEN
           ['How does the bonus work with a gift card?', 'Do I get the bonus on gift card ' || f.n * 1000 + k || '?',
            'Where do I see the bonus of gift card ' || f.n * 1000 + k || '?'][1 + k % 4]
       ELSE
           ['When will I get my money back for order ' || f.n * 1000 + k || '?', 'I sent order ' || f.n * 1000 + k || ' back last week. Where is my refund?',
            'How long does the refund of order ' || f.n * 1000 + k || ' take?', 'Is the refund of order ' || f.n * 1000 + k || ' on its way?'][1 + (f.n + k + 1) % 4]
       END || '"}]' AS messages,
       'Within ' || 7 + k % 3 * 7 || ' days.' AS response, 'c' || f.n || '-' || k // 2 AS conversation_id,
       'u' || (k * 7 + f.n) % 3000 AS user_id, 0.4 AS latency_seconds, 'interactions' AS topic, 0 AS partition,
       f.n * 100000000 + k AS "offset", $now::TIMESTAMP AS received_at, 0 AS batch
FROM fleet f, range($each) t(k);

INSERT INTO quality BY NAME
SELECT times.moment AS created_at, f.workload, '*' AS model, metric, source, value,
       greatest(value - 0.08, 0) AS low, least(value + 0.08, 1) AS high, CASE metric WHEN 'window_seconds' THEN $each ELSE 40 + f.n % 30 END AS n
FROM fleet f, (
    SELECT $now::TIMESTAMP - to_seconds(3600 * h) AS moment, h FROM range(28 * 24) t(h) WHERE h < 168 OR h % 24 = 0
) times, (VALUES ('helpful_rate', 'user'), ('hallucination_rate', 'grounding_calibrated'), ('latency_p95_seconds', 'app'), ('window_seconds', 'app')) m(metric, source),
LATERAL (SELECT CASE metric
    WHEN 'helpful_rate' THEN CASE WHEN f.falls AND h < 72 THEN f.helpful / 3 ELSE f.helpful END + 0.01 * sin(h + f.n)
    WHEN 'hallucination_rate' THEN CASE WHEN f.falls AND h < 72 THEN 0.3 ELSE 0.04 END
    WHEN 'window_seconds' THEN 86400
    ELSE 0.6 END AS value) v
WHERE NOT (f.unrated AND metric = 'helpful_rate');

INSERT INTO drift_checks BY NAME
SELECT 'd' || n AS id, $now::TIMESTAMP - INTERVAL 1 HOUR AS created_at, workload, falls AS drifted, CASE WHEN falls THEN 0.23 END AS severity,
       CASE WHEN falls THEN 0.17 END AS severity_low, CASE WHEN falls THEN 0.3 END AS severity_high,
       CASE WHEN falls THEN '[{"feature": "topic", "drifted": true, "reference": "2% gift card", "current": "25% gift card", "example": "How does the bonus work with a gift card?"}]' ELSE '[]' END AS features,
       2000 AS reference_rows, 400 AS current_rows, CASE WHEN falls THEN 'topics moved' ELSE 'nothing moved' END AS detail
FROM fleet;

INSERT INTO aliases BY NAME SELECT workload, 'champion' AS alias, '3f2a91c0' AS version, $now::TIMESTAMP - INTERVAL 9 DAY AS created_at FROM fleet WHERE n % 3 > 0;

INSERT INTO approvals BY NAME
SELECT 'a' || n AS id, workload, '8c01dd2e' AS version, '3f2a91c0' AS champion, 'r' || n AS run_id, $now::TIMESTAMP - INTERVAL 2 HOUR AS requested_at,
       $now::TIMESTAMP + INTERVAL 5 DAY AS expires_at, 'waiting' AS state, false AS announced, 'version' AS kind
FROM fleet WHERE n % 40 = 5;

INSERT INTO runs BY NAME
SELECT 'r' || n AS id, workload, '["36 new corrections"]' AS reasons, CASE WHEN n % 40 = 8 THEN 'running' WHEN n % 50 = 9 THEN 'failed' ELSE 'succeeded' END AS state,
       $now::TIMESTAMP - INTERVAL 1 HOUR AS started_at, CASE WHEN n % 50 = 9 THEN 'the disk is full' END AS error
FROM fleet WHERE n % 3 > 0;

INSERT INTO label_requests BY NAME
SELECT 'l' || f.n || '-' || k AS id, $now::TIMESTAMP - to_seconds(60 * k) AS created_at, f.workload, 'i' || f.n || '-' || k AS interaction_id,
       CASE WHEN f.unrated THEN 'new topic' ELSE 'uncertain' END AS reason,
       CASE WHEN f.unrated THEN 'Nothing like it has been taught: the question is new.'
            ELSE 'People called it wrong, and nobody said what is right (3 against, 0 for).' END AS detail, 0.8 AS score, true AS announced
FROM fleet f, range(12) t(k) WHERE f.n % 2 = 1;

INSERT INTO ledger BY NAME
SELECT uuid()::VARCHAR AS id, $now::TIMESTAMP - to_seconds(3600 * h) AS created_at, workload, kind, item, 1.0 AS quantity, 'EUR' AS unit, 1.0 AS rate,
       CASE kind WHEN 'gain' THEN 0.9 ELSE 0.3 END AS amount, '' AS reference
FROM fleet, range(28 * 24) t(h), (VALUES ('gain', 'time_saved'), ('cost', 'inference')) k(kind, item) WHERE n % 4 > 0;

-- Every second answer is rated: one in five of them corrected by an expert. Three users call each answer wrong about which
-- experts are asked.
INSERT INTO feedback BY NAME
SELECT 'f' || f.n || '-' || k AS id, $now::TIMESTAMP - to_seconds(60 * k) AS timestamp, 'i' || f.n || '-' || k AS interaction_id,
       CASE WHEN k % 10 = 0 THEN 'correction' ELSE 'helpful' END AS name,
       CASE WHEN k % 10 = 0 THEN '"Within 14 days, and at once for gift cards."'::JSON ELSE (k % 3 > 0)::VARCHAR::JSON END AS value,
       CASE WHEN k % 10 = 0 THEN 'expert' ELSE 'user' END AS source,
       CASE WHEN k % 10 = 0 THEN 'expert' || k % 20 // 10 ELSE 'u' || (k * 7 + f.n) % 3000 END AS user_id,
       'feedback' AS topic, 0 AS partition, f.n * 100000000 + k AS "offset", $now::TIMESTAMP AS received_at
FROM fleet f, range(CASE WHEN f.n % 2 = 1 THEN 12 ELSE 0 END, least($each, 360), 2) t(k) WHERE NOT f.unrated;

INSERT INTO feedback BY NAME
SELECT id || '-' || j AS id, created_at AS timestamp, interaction_id, 'helpful' AS name, 'false'::JSON AS value, 'user' AS source,
       'v' || j AS user_id, 'feedback' AS topic, 1 AS partition, 10 * row_number() OVER (ORDER BY id) + j AS "offset",
       $now::TIMESTAMP AS received_at
FROM label_requests, range(3) t(j) WHERE reason = 'uncertain';

-- The last dataset: of what was corrected or approved, some is outvoted, at most 30 rows are held out.
INSERT INTO row_states BY NAME
SELECT f.workload, b.id AS feedback_id, b.interaction_id, b.user_id,
       CASE WHEN k % 14 = 0 THEN 'set_aside' WHEN row_number() OVER (PARTITION BY f.n, k % 14 = 0 ORDER BY hash(k)) <= least(30, k_most / 10)
            THEN 'held_out' ELSE 'taught' END AS state,
       CASE WHEN k % 14 = 0 THEN 'outvoted' ELSE '' END AS reason, CASE WHEN k % 14 = 0 THEN '3 accounts gave another answer' ELSE '' END AS detail,
       false AS quarantined, 'd' || f.n AS dataset_version, $now::TIMESTAMP - INTERVAL 3 HOUR AS decided_at
FROM fleet f, (SELECT least($each, 360) AS k_most) m, range(0, k_most, 2) t(k) JOIN feedback b ON b.id = 'f' || f.n || '-' || k
WHERE b.name = 'correction' OR b.value::VARCHAR = 'true';

INSERT INTO datasets BY NAME
SELECT dataset_version AS version, workload, any_value(decided_at) AS created_at, $folder AS path, count(*) FILTER (state = 'taught') AS train,
       count(*) FILTER (state = 'held_out') AS holdout, 0 AS replay, '{}' AS card
FROM row_states GROUP BY ALL;

INSERT INTO dataset_rows BY NAME
SELECT dataset_version, feedback_id AS row_id, CASE state WHEN 'taught' THEN 'train' ELSE 'holdout' END AS split, '' AS prompt_hash,
       interaction_id, feedback_id
FROM row_states WHERE state <> 'set_aside';

INSERT INTO models BY NAME
SELECT '8c01dd2e' AS version, workload, $now::TIMESTAMP - INTERVAL 2 HOUR AS created_at, '/models/8c01dd2e' AS path, '/models/base' AS base_model,
       '' AS base_hash, '3f2a91c0' AS parent_version, 'd' || n AS dataset_version, 'r' || n AS run_id, '{}' AS manifest
FROM fleet WHERE n % 40 = 5
UNION ALL
SELECT '3f2a91c0', workload, $now::TIMESTAMP - INTERVAL 12 DAY, '/models/3f2a91c0', '/models/base', '', NULL, 'e' || n, 'q' || n, '{}'
FROM fleet WHERE n % 3 > 0;

UPDATE runs SET version = '8c01dd2e', train_seconds = 754, finished_at = $now::TIMESTAMP - INTERVAL 2 HOUR,
    detail = '{"scores": {"base": 0.2, "champion": 0.667, "candidate": 0.867, "logged": 0.6}}'
WHERE id IN (SELECT run_id FROM models WHERE version = '8c01dd2e');

INSERT INTO decisions BY NAME
SELECT 'g' || n AS id, $now::TIMESTAMP - INTERVAL 2 HOUR AS created_at, workload, 'gate' AS kind, true AS outcome,
       '["The candidate scores 0.867 on 30 held-out questions, 3f2a91c0 scores 0.667: a gain of 0.200, 95% interval 0.046 to 0.354."]' AS reasons,
       '{"passed[gain]": 1, "score_candidate": 0.867, "score_champion": 0.667, "gain_low": 0.046, "gain_high": 0.354,
         "passed[logged]": 1, "score_logged": 0.6, "gain_over_logged_low": -0.02, "gain_over_logged_high": 0.4, "passed[refusal]": 1,
         "refusal_candidate": 0.0, "refusal_champion": 0.02, "passed[hallucination]": 1, "hallucination_candidate": 0.03,
         "hallucination_champion": 0.11, "passed[latency]": 1, "token_candidate_seconds": 0.021, "token_champion_seconds": 0.02}' AS figures,
       'r' || n AS run_id, 'facts' AS metric
FROM fleet WHERE n % 40 = 5;

INSERT INTO evaluations BY NAME
SELECT 'r' || n AS run_id, workload, 'd' || n AS dataset_version, model, 'holdout' AS split, 'q' || k AS row_id, score, score AS token_f1,
       CASE WHEN score > 0 THEN 'Within 14 days.' ELSE 'Within 30 days, as a rule, and always before the end of the month.' END AS output,
       CASE WHEN score = 0 THEN '30 days is not 14 days' END AS detail
FROM fleet, range(30) t(k), (VALUES ('base'), ('3f2a91c0'), ('8c01dd2e')) m(model),
LATERAL (SELECT CASE model WHEN 'base' THEN k % 5 = 0 WHEN '3f2a91c0' THEN k % 3 > 0 ELSE k % 8 > 0 END::INT::DOUBLE AS score) s
WHERE n % 40 = 5;

INSERT INTO promotions BY NAME
SELECT 'p' || n || event AS id, $now::TIMESTAMP - to_days(days) AS created_at, workload, event, '3f2a91c0' AS version, 'gate' AS actor,
       reason, true AS announced, share
FROM fleet, (VALUES ('canary', 11, 0.25, 'better on 30 held-out questions'), ('promoted', 9, 1.0, 'not shown to be worse by more than 5 points'))
    p(event, days, share, reason)
WHERE n % 3 > 0;

COPY (
    SELECT 'q' || k AS row_id, 'How long does the refund of order ' || k || ' take?' AS question, 'Within 14 days.' AS completion, 'expert' AS source
    FROM range(30) t(k)
) TO 'holdout.parquet' (FORMAT parquet);
