-- name: data
UPDATE batches SET last = last + 1;

CREATE OR REPLACE TEMP TABLE todays AS
SELECT w, n, 'support.' || w AS workload, $day::TIMESTAMP + to_microseconds((n * 86_400_000_000 // $events) + w) AS moment,
       'e' || $number || '-' || w || '-' || n AS id, $number * $events + n AS place
FROM range($workloads) AS workloads(w), range($events) AS events(n);

INSERT INTO interactions BY NAME
SELECT id, moment AS timestamp, workload, workload || '@' || coalesce($version || w, 'base') AS model,
       '[{"role": "user", "content": "Where is my parcel ' || md5(id) || ', which I ordered on day ' || $number || '?"}]'
           AS messages,
       'Your parcel ' || md5(id || 'x') || ' is on its way to you and will be there within ' || place % 9 || ' days.'
           AS response,
       'c' || id AS conversation_id, 'u' || hash(id) % 5000 AS user_id, 0.5 + (place % 100) / 100 AS latency_seconds,
       100 + place % 50 AS input_tokens, 40 + place % 20 AS output_tokens, 0.0004 AS cost,
       'interactions' AS topic, w AS partition, place AS "offset", moment AS received_at, last AS batch
FROM todays, batches ORDER BY moment;

INSERT INTO feedback BY NAME
SELECT 'f' || id AS id, moment AS timestamp, id AS interaction_id, name, value, 'user' AS source, NULL AS user_id,
       'feedback' AS topic, w AS partition, 2 * place + part AS "offset", moment AS received_at, last AS batch
FROM (
    SELECT *, 0 AS part, 'helpful' AS name, CASE WHEN n % 20 < 5 THEN 'true' ELSE 'false' END::JSON AS value
    FROM todays WHERE n % 10 < 3
    UNION ALL
    SELECT *, 1, 'correction', ('"It is at the customs office since day ' || $number || '."')::JSON FROM todays WHERE n % 50 = 7
), batches ORDER BY moment;

INSERT INTO ledger BY NAME
SELECT uuid()::VARCHAR AS id, $day::TIMESTAMP + to_minutes(10 * m) AS created_at, 'support.' || w AS workload, 'cost' AS kind,
       'fixed' AS item, 1 / 144 / 50 AS quantity, 'days' AS unit, 24.0 AS rate, 24.0 / 144 / 50 AS amount,
       '{"until": "' || ($day::TIMESTAMP + to_minutes(10 * m)) || '"}' AS reference, $version || w AS version,
       $promotion || '-' || w AS promotion, created_at - INTERVAL 10 MINUTE AS period_start, created_at AS period_end
FROM range(144) AS minutes(m), range($workloads) AS workloads(w);

INSERT INTO quality BY NAME
SELECT $day::TIMESTAMP + to_hours(h) AS created_at, 'support.' || w AS workload, model, metric, source,
       0.5 + hash(h, w, metric) % 100 / 1000 AS value, value - 0.05 AS low, value + 0.05 AS high, 60 AS n
FROM range(24) AS hours(h), range($workloads) AS workloads(w), (VALUES ('*'), ('base')) AS models(model),
     (VALUES ('helpful_rate', 'user'), ('latency_p50_seconds', 'app'), ('latency_p95_seconds', 'app'),
             ('latency_p99_seconds', 'app'), ('input_tokens', 'app'), ('output_tokens', 'app')) AS figures(metric, source);

INSERT INTO drift_checks BY NAME
SELECT 'd' || $number || '-' || w || '-' || q AS id, $day::TIMESTAMP + to_minutes(15 * q) AS created_at,
       'support.' || w AS workload, q = 0 AND $number % 9 = 8 AS drifted, CASE WHEN drifted THEN 0.2 ELSE 0.0 END AS severity,
       json_array($features::JSON, $features::JSON, $features::JSON, $features::JSON, $features::JSON, $features::JSON,
                  $features::JSON, $features::JSON, $features::JSON, json_merge_patch($features::JSON, json_object('value', hash(id) % 1000 / 1000)))
           AS features,
       1000 AS reference_rows, 200 AS current_rows,
       CASE WHEN q = 0 THEN $reports || '/d' || $number || '-' || w || '.json' END AS report,
       '0 of 10 features moved. Not compared: helpful (too few values).' AS detail
FROM range(96) AS quarters(q), range($workloads) AS workloads(w);

INSERT INTO decisions BY NAME
SELECT 'n' || $number || '-' || w || '-' || n AS id, $day::TIMESTAMP + to_hours(6 * n) AS created_at,
       'support.' || w AS workload, 'retrain' AS kind, false AS outcome,
       '["too few corrections that were not tried yet (4 of 20)", "no drift"]' AS reasons,
       '{"drifted": [false, false], "ratings": 600, "refused_runs": 0}' AS figures
FROM range(4) AS changes(n), range($workloads) AS workloads(w);

INSERT INTO label_requests BY NAME
SELECT 'l' || id AS id, $day::TIMESTAMP + INTERVAL 1 DAY AS created_at, workload, id AS interaction_id,
       'uncertain' AS reason, 'People called it wrong, and nobody said what is right (1 against, 0 for).' AS detail,
       0.7 AS score, true AS announced, CASE WHEN n % 2 = 0 THEN $day::TIMESTAMP + INTERVAL 1 DAY END AS answered_at,
       CASE WHEN n % 2 = 0 THEN 'f' || id END AS feedback_id
FROM todays WHERE n % 40 = 7;

-- name: watched
INSERT INTO watch_checks BY NAME
SELECT 'w' || $number || '-' || w || '-' || n AS id, $day::TIMESTAMP + to_minutes(5 * n) AS created_at,
       'support.' || w AS workload, $promotion || '-' || w AS promotion_id, $version || w AS version, $since AS since,
       $since + INTERVAL 3 DAY AS until,
       CASE WHEN $day::TIMESTAMP - $since >= INTERVAL 2 DAY AND n = 287 THEN 'keep' ELSE 'go_on' END AS verdict,
       json_array($comparison::JSON, $comparison::JSON, json_merge_patch($comparison::JSON, json_object('worse', hash(id) % 1000 / 1000)))
           AS comparisons,
       '["neither shown to be worse by more than 5 points nor to be within them", "unhelpful by user: 30% of 40 answers"]'
           AS reasons
FROM range(288) AS looks(n), range($workloads) AS workloads(w)

-- name: runs
INSERT INTO runs BY NAME
SELECT 'r' || $number || '-' || w AS id, 'support.' || w AS workload, '["it is Thursday"]' AS reasons,
       'succeeded' AS state, $day AS started_at, $day + INTERVAL 20 MINUTE AS finished_at, $version || 'd' || w
           AS dataset_version, $parent || w AS parent_version, $version || w AS version, 600 AS train_seconds,
       60 AS evaluate_seconds, $detail AS detail
FROM range($workloads) AS workloads(w);

INSERT INTO datasets BY NAME
SELECT $version || 'd' || w AS version, 'support.' || w AS workload, $day AS created_at,
       $models || '/support.' || w || '/datasets/' || version AS path, $rows * 0.85 AS train,
       $rows * 0.15 AS holdout, 20 AS replay,
       json_object('evidence_until', strftime($day, '%Y-%m-%dT%H:%M:%S'), 'generation', $generation, 'card', $detail,
                   'rows', json_object('train', $rows * 0.85, 'holdout', $rows * 0.15, 'regression', $rows * 0.5))
           AS card
FROM range($workloads) AS workloads(w);

INSERT INTO dataset_rows BY NAME
SELECT $version || 'd' || w AS dataset_version, sha256('row' || $number || w || n) AS row_id,
       CASE WHEN n % 20 < 17 THEN 'train' ELSE 'holdout' END AS split,
       sha256('prompt' || $number || w || n) AS prompt_hash, 'e' || $number || '-' || w || '-' || n AS interaction_id,
       'f' || interaction_id AS feedback_id
FROM range($rows) AS rows(n), range($workloads) AS workloads(w);

INSERT INTO evaluations BY NAME
SELECT 'r' || $number || '-' || w AS run_id, 'support.' || w AS workload, $version || 'd' || w AS dataset_version, model,
       'holdout' AS split, sha256('row' || $number || w || n) AS row_id, 0.7 AS score, 0.6 AS token_f1, 1.2 AS loss,
       0.4 AS latency_seconds,
       'It is at the customs office since the day ' || md5(model || row_id) || ' and will be with you soon.' AS output
FROM range(60) AS rows(n), range($workloads) AS workloads(w), (VALUES ('base'), ('logged'), ('champion'), ('candidate')) AS m(model);

INSERT INTO decisions BY NAME
SELECT 'g' || $number || '-' || w AS id, $day AS created_at, 'support.' || w AS workload, 'gate' AS kind,
       $promotion IS NOT NULL AS outcome, '["better by 3 points"]' AS reasons, '{"holdout_score_candidate": 0.7}' AS figures,
       'r' || $number || '-' || w AS run_id
FROM range($workloads) AS workloads(w);

INSERT INTO models BY NAME
SELECT $version || w AS version, 'support.' || w AS workload, $day AS created_at,
       $models || '/support.' || w || '/' || version AS path, '/models/base' AS base_model, 'b' AS base_hash,
       $parent || w AS parent_version, $version || 'd' || w AS dataset_version, 'r' || $number || '-' || w AS run_id,
       $detail AS manifest
FROM range($workloads) AS workloads(w);

-- name: promoted
DELETE FROM aliases;

INSERT INTO aliases BY NAME
SELECT 'support.' || w AS workload, 'champion' AS alias, $version || w AS version, $day AS created_at
FROM range($workloads) AS workloads(w)
UNION ALL BY NAME
SELECT 'support.' || w AS workload, 'previous' AS alias, $champion || w AS version, $day AS created_at
FROM range($workloads) AS workloads(w);

INSERT INTO promotions BY NAME
SELECT $promotion || '-' || w AS id, $day AS created_at, 'support.' || w AS workload, 'promoted' AS event,
       $version || w AS version, $champion || w AS previous_version, 'gate' AS actor, 'better' AS reason, true AS announced
FROM range($workloads) AS workloads(w);
