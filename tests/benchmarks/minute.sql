-- A part of a steady stream of answers; each has five passages, one in sixty-seven is rated. Ids are random, as those of
-- real events are: nothing tells from an id when its row came.
UPDATE batches SET last = last + 1;

INSERT INTO interactions BY NAME
SELECT md5('e' || n) AS id, $now::TIMESTAMP - to_microseconds(($total - n)::BIGINT * $gap::BIGINT) AS timestamp,
       $workload AS workload, $workload || '@base' AS model,
       '[{"role": "user", "content": "Where is my parcel ' || hash(n) || ', which I ordered on Monday?"}]' AS messages,
       'Your parcel ' || hash(n) || ' is on its way to you and will be there within ' || n % 9 || ' days.' AS response,
       list_extract($contexts::VARCHAR[], (n % 9 + 1)::BIGINT) AS context,
       md5('c' || n // 3) AS conversation_id, 'u' || hash(n // 3) % 500_000 AS user_id, 0.5 + (n % 100) / 100 AS latency_seconds,
       100 + n % 50 AS input_tokens, 40 + n % 20 AS output_tokens, 0.0004 AS cost, 'interactions' AS topic,
       0 AS partition, n AS "offset", timestamp AS received_at, last AS batch
FROM range($first, $last) AS numbers(n), batches;

INSERT INTO feedback BY NAME
SELECT md5('f' || n) AS id, $now::TIMESTAMP - to_microseconds(($total - n)::BIGINT * $gap::BIGINT) AS timestamp,
       md5('e' || n) AS interaction_id, 'helpful' AS name, (hash(n) % 4 > 0)::VARCHAR::JSON AS value, 'user' AS source,
       'u' || hash(n // 3) % 500_000 AS user_id, 'feedback' AS topic, 0 AS partition, n AS "offset",
       timestamp AS received_at, last AS batch
FROM range($first, $last) AS numbers(n), batches
WHERE n % 67 = 0
