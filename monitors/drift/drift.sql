-- name: rated
-- An empty table for users' votes on the answers of both windows.
CREATE OR REPLACE TEMP TABLE rated (id VARCHAR, unit VARCHAR, value BOOLEAN)

-- name: add_rated
INSERT INTO rated SELECT interaction_id, unit, value FROM comparable_votes WHERE name = 'helpful' AND source = 'user'

-- name: choose_rated
-- Like `choose` in windows.sql, but of the rated answers, with the same chance for each vote. Votes of one account (else
-- conversation) are correlated, which the comparison takes into account.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT interactions.rowid AS answer
FROM interactions JOIN rated USING (id)
WHERE workload = $workload AND model <> 'demonstration' AND timestamp >= $start AND timestamp < $end
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)
ORDER BY hash(id, $seed)
LIMIT $rows

-- name: choose_with_context
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT arg_min(rowid, hash(id, $seed)) AS answer
FROM interactions
WHERE workload = $workload AND model <> 'demonstration' AND timestamp >= $start AND timestamp < $end
  AND context IS NOT NULL AND context <> '[]'
  AND ($since::TIMESTAMP IS NULL
       OR ((epoch_us(timestamp) - epoch_us($since::TIMESTAMP)) % $period + $period) % $period < $length)
GROUP BY coalesce(conversation_id, id)
ORDER BY hash(coalesce(conversation_id, id), $seed)
LIMIT $rows

-- name: sampled
-- All samples in one table, with the user's last message, cut short: one pasted document must not cost more than all other
-- rows. Days are counted from the start of the current window.
CREATE OR REPLACE TEMP TABLE sampled AS
WITH united AS (
    SELECT 'reference' AS "window", 'answers' AS sample, * FROM reference_answers
    UNION ALL
    SELECT 'reference', 'rated', * FROM reference_rated
    UNION ALL
    SELECT 'reference', 'context', * FROM reference_context
    UNION ALL
    SELECT 'current', 'answers', * FROM current_answers
    UNION ALL
    SELECT 'current', 'rated', * FROM current_rated
    UNION ALL
    SELECT 'current', 'context', * FROM current_context
), parsed AS (
    -- The text of a message is the same as a string and as parts.
    SELECT *, list_transform(TRY_CAST(messages AS JSON[]), lambda turn: {
        'role': turn ->> 'role',
        'content': coalesce(message_text(turn), '')
    }) AS turns
    FROM united
)
SELECT
    "window", sample, id, model, response, latency_seconds, context, attributes,
    CASE WHEN $one_day THEN 0 ELSE floor((epoch_us(timestamp) - epoch_us($current_start::TIMESTAMP)) / 86400e6)::BIGINT END AS day,
    coalesce(list_filter(turns, lambda turn: turn.role = 'user')[-1].content, turns[-1].content, '') AS said,
    left(said, 4000) AS prompt,
    list_distinct(regexp_extract_all(lower(prompt), '[\p{L}][\p{L}\p{M}''’]+')) AS words
FROM parsed

-- name: features
WITH spoken AS (
    SELECT "window", id, unnest(words) AS word FROM sampled WHERE sample = 'answers'
), vocabulary AS (
    -- A word that only one row has, such as a name or a typing error, carries no information on either window.
    SELECT word, count(*) FILTER ("window" = 'reference') AS reference_rows FROM spoken GROUP BY word HAVING count(*) > 1
), unseen AS (
    -- A word is new if no other row of the reference has it. Without "other", rows of the reference would have no new
    -- words by construction, and every quiet window would differ from them.
    SELECT
        spoken."window", id,
        avg(CASE WHEN vocabulary.reference_rows <= (spoken."window" = 'reference')::INTEGER THEN 1.0 ELSE 0.0 END) AS share
    FROM spoken JOIN vocabulary USING (word)
    GROUP BY spoken."window", id
), languages (language, function_words) AS (
    VALUES
        ('english', ['the', 'is', 'my', 'what', 'how', 'you', 'to', 'can', 'do', 'of', 'and', 'not', 'for', 'with']),
        ('german', ['der', 'die', 'das', 'ist', 'ich', 'und', 'wie', 'nicht', 'mein', 'meine', 'kann', 'ein', 'eine', 'zu']),
        ('french', ['le', 'les', 'est', 'je', 'et', 'comment', 'pas', 'mon', 'une', 'des', 'que', 'vous', 'pour', 'du']),
        ('spanish', ['el', 'los', 'es', 'yo', 'cómo', 'mi', 'una', 'qué', 'por', 'para', 'con', 'del', 'puedo', 'tengo']),
        ('italian', ['il', 'che', 'di', 'è', 'non', 'come', 'sono', 'mio', 'gli', 'della', 'posso', 'ho', 'mi', 'una']),
        ('portuguese', ['os', 'não', 'como', 'uma', 'meu', 'eu', 'para', 'você', 'do', 'da', 'posso', 'são', 'minha', 'com']),
        ('dutch', ['het', 'een', 'ik', 'niet', 'hoe', 'mijn', 'van', 'kan', 'wat', 'en', 'voor', 'de', 'heb', 'naar'])
), guessed AS (
    SELECT
        "window", sample, id,
        arg_max(language, len(list_intersect(words, function_words)) - ordinal / 100.0) AS language,
        max(len(list_intersect(words, function_words))) AS hits
    FROM sampled, (SELECT *, row_number() OVER () AS ordinal FROM languages)
    GROUP BY "window", sample, id
)
SELECT
    sampled."window",
    sampled.sample,
    sampled.model,
    day,
    hash(coalesce(rated.unit, sampled.id)) AS unit,
    prompt,
    CASE WHEN length(response) <= 2000 THEN response END AS answer,
    [attributes ->> ('$."' || name || '"') for name in $segments::VARCHAR[]] AS segments,
    length(said)::DOUBLE AS prompt_length,
    length(response)::DOUBLE AS response_length,
    list_sum(list_transform(context ->> '$[*]', lambda passage: length(passage)))::DOUBLE AS context_length,
    length(regexp_replace(prompt, '\D', '', 'g')) / greatest(length(prompt), 1)::DOUBLE AS digit_share,
    (length(prompt) - length(replace(prompt, '?', '')))::DOUBLE AS question_marks,
    unseen.share AS new_words,
    CASE WHEN isfinite(latency_seconds) THEN latency_seconds END AS latency_seconds,
    CASE
        WHEN regexp_matches(prompt, '[\p{Hiragana}\p{Katakana}]') THEN 'japanese'
        WHEN regexp_matches(prompt, '\p{Hangul}') THEN 'korean'
        WHEN regexp_matches(prompt, '\p{Han}') THEN 'chinese'
        WHEN regexp_matches(prompt, '\p{Cyrillic}') THEN 'cyrillic'
        WHEN regexp_matches(prompt, '\p{Arabic}') THEN 'arabic'
        WHEN regexp_matches(prompt, '\p{Devanagari}') THEN 'devanagari'
        WHEN regexp_matches(prompt, '\p{Greek}') THEN 'greek'
        WHEN regexp_matches(prompt, '\p{Hebrew}') THEN 'hebrew'
        WHEN regexp_matches(prompt, '\p{Thai}') THEN 'thai'
        WHEN guessed.hits > 0 THEN guessed.language
        ELSE 'unknown'
    END AS language,
    CASE WHEN regexp_matches(regexp_replace(
        replace(replace(strip_accents(lower(response)), 'ß', 'ss'), '’', ''''), $quoted, '', 'g'), $refusal)
         THEN 'yes' ELSE 'no' END AS refusal,
    CASE WHEN coalesce(json_array_length(context), 0) > 0 THEN 'yes' ELSE 'no' END AS has_context,
    CASE rated.value WHEN true THEN 'yes' WHEN false THEN 'no' END AS helpful
FROM sampled
LEFT JOIN unseen ON unseen."window" = sampled."window" AND unseen.id = sampled.id
LEFT JOIN guessed ON guessed."window" = sampled."window" AND guessed.sample = sampled.sample AND guessed.id = sampled.id
LEFT JOIN rated ON rated.id = sampled.id AND sampled.sample = 'rated'
ORDER BY sampled."window", sampled.sample, sampled.id

-- name: new_terms
-- Words of the current window that are not in the reference, the most frequent first.
SELECT word
FROM (SELECT "window", unnest(words) AS word FROM sampled WHERE sample = 'answers')
GROUP BY word
HAVING count(*) FILTER ("window" = 'reference') = 0 AND count(*) >= 3 AND length(word) > 3
ORDER BY count(*) DESC, word
LIMIT 5

-- name: old_reports
-- All reports except the latest and those of the latest $keep checks that found drift; and all reports before $old.
SELECT id, report
FROM (
    SELECT id, report, created_at, drifted, row_number() OVER (PARTITION BY workload ORDER BY created_at DESC, id DESC) AS age,
           row_number() OVER (PARTITION BY workload, drifted ORDER BY created_at DESC, id DESC) AS place
    FROM drift_checks
    WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND report IS NOT NULL
)
WHERE (age > 1 AND (NOT drifted OR place > $keep)) OR created_at < $old
ORDER BY created_at, id

-- name: latest
SELECT * FROM drift_checks
WHERE workload = $workload
ORDER BY created_at DESC, id DESC
LIMIT 1

-- name: examples
-- A current prompt for each feature that moved in the latest check.
SELECT feature ->> 'feature' AS feature, feature ->> 'example' AS example
FROM (
    SELECT unnest(features::JSON[]) AS feature FROM (
        SELECT features FROM drift_checks WHERE workload = $workload ORDER BY created_at DESC, id DESC LIMIT 1
    )
)
WHERE feature ->> 'drifted' = 'true' AND feature ->> 'example' <> ''

-- name: ahead
-- Checks that were made while the clock was ahead.
DELETE FROM drift_checks WHERE workload = $workload AND created_at > $now

-- name: latest_at
SELECT max(created_at) AS created_at FROM drift_checks

-- name: reports
SELECT report FROM drift_checks WHERE report IS NOT NULL

-- name: days_with_features
SELECT DISTINCT created_at::DATE AS day FROM drift_checks
WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND created_at < $recent
    AND drifted IS NOT TRUE AND features <> '[]'
ORDER BY day

-- name: forget_features
-- The sentence of a check that found nothing is enough.
UPDATE drift_checks SET features = '[]'
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at >= $day AND created_at < least($recent, $day + INTERVAL 1 DAY)
    AND drifted IS NOT TRUE AND features <> '[]'
    AND (workload, created_at) NOT IN (SELECT workload, max(created_at) FROM drift_checks GROUP BY workload)

-- name: forget_checks
DELETE FROM drift_checks
WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND created_at < $old
    AND (workload, created_at) NOT IN (SELECT workload, max(created_at) FROM drift_checks GROUP BY workload)

-- name: thin
-- Keeps the last of each hour of the checks before $recent that found nothing.
DELETE FROM drift_checks
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at < $recent AND drifted IS NOT TRUE AND report IS NULL
    AND (workload, created_at) NOT IN (
        SELECT workload, max(created_at) FROM drift_checks
        WHERE created_at < $recent AND drifted IS NOT TRUE
        GROUP BY workload, date_trunc('hour', created_at)
    )
    AND (workload, created_at) NOT IN (SELECT workload, max(created_at) FROM drift_checks GROUP BY workload)
