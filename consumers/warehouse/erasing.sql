-- name: state_of_tombstones
SELECT count(*), bit_xor(hash(erasure_id, kind, key_id, tombstones.hash, since, until)) FROM tombstones

-- name: tombstones
SELECT kind, key_id, hash, since, until FROM tombstones

-- name: segment_interactions
-- What `matching_interactions` returns of the segments of a cluster, and of the rows of datasets.
CREATE OR REPLACE TEMP TABLE segment_interactions (
    id VARCHAR, timestamp TIMESTAMP, workload VARCHAR, conversation_id VARCHAR, user_id VARCHAR, is_selected BOOLEAN,
    file INTEGER
)

-- name: segment_feedback
CREATE OR REPLACE TEMP TABLE segment_feedback (
    id VARCHAR, timestamp TIMESTAMP, interaction_id VARCHAR, user_id VARCHAR, is_selected BOOLEAN, file INTEGER
)

-- name: matching_interactions
-- Interactions (`events`) without their texts, and whether each matches the selection by itself.
-- file: the number of the file of a segment; null: another place.
SELECT id, timestamp, workload, conversation_id, user_id,
    id IN (SELECT unnest($interactions::VARCHAR[]))
    OR conversation_id IN (SELECT unnest($conversations::VARCHAR[]))
    OR user_id IN (SELECT unnest($users::VARCHAR[]))
    OR EXISTS (
        SELECT 1 FROM (SELECT unnest($users::VARCHAR[]) AS name) AS named
        WHERE contains(attributes, name) OR contains(messages, name) OR contains(context, name)
    )
    OR ($by_fields
        AND ($workload::VARCHAR IS NULL OR workload = $workload)
        AND ($after::TIMESTAMP IS NULL OR timestamp >= $after)
        AND ($before::TIMESTAMP IS NULL OR timestamp < $before)
        AND NOT EXISTS (
            SELECT 1 FROM (SELECT unnest($names::VARCHAR[]) AS name, unnest($values::VARCHAR[]) AS value) AS wanted
            WHERE (attributes::JSON ->> ('$."' || name || '"')) IS DISTINCT FROM value
        )) AS is_selected,
    file
FROM (
    {events}
)

-- name: matching_feedback
-- The same of feedback.
SELECT id, timestamp, interaction_id, user_id,
    user_id IN (SELECT unnest($users::VARCHAR[]))
    OR id IN (SELECT unnest($interactions::VARCHAR[]))
    OR EXISTS (SELECT 1 FROM (SELECT unnest($users::VARCHAR[]) AS name) AS named WHERE contains(value, name))
    AS is_selected,
    file
FROM (
    {events}
)

-- name: chosen
-- The interactions of a selection, and the later turns of their conversations, which repeat them.
-- `matching`: all interactions of the warehouse and of the archive, as `matching_interactions` returns them.
CREATE OR REPLACE TEMP TABLE chosen AS
WITH events AS (
    {matching}
    UNION ALL FROM segment_interactions
), selected AS (
    SELECT * FROM events WHERE is_selected
), starts AS (
    SELECT conversation_id, min(timestamp) AS since FROM selected WHERE conversation_id IS NOT NULL GROUP BY ALL
)
SELECT id, timestamp, workload, conversation_id, user_id FROM selected
UNION
SELECT events.id, events.timestamp, events.workload, events.conversation_id, events.user_id
FROM events JOIN starts ON starts.conversation_id = events.conversation_id AND events.timestamp >= starts.since

-- name: chosen_feedback
-- The feedback on chosen interactions, that of chosen users, and feedback that is named itself.
CREATE OR REPLACE TEMP TABLE chosen_feedback AS
SELECT DISTINCT id, timestamp, interaction_id, user_id FROM (
    {matching}
    UNION ALL FROM segment_feedback
)
WHERE is_selected OR interaction_id IN (SELECT id FROM chosen)

-- name: everywhere
-- All interactions (`events`: those of the warehouse and of the archive).
SELECT id, workload, conversation_id FROM (
    {events}
)
UNION ALL SELECT id, workload, conversation_id FROM segment_interactions

-- name: chosen_in_segments
SELECT file, count(*) FROM (
    SELECT file FROM segment_interactions WHERE id IN (SELECT id FROM chosen)
    UNION ALL
    SELECT file FROM segment_feedback WHERE id IN (SELECT id FROM chosen_feedback)
)
WHERE file IS NOT NULL
GROUP BY file ORDER BY file

-- name: starts
-- The conversations of chosen interactions, each with the time of the first one: later turns repeat it.
SELECT conversation_id, min(timestamp) FROM chosen WHERE conversation_id IS NOT NULL GROUP BY ALL

-- name: first
SELECT min(timestamp) FROM (SELECT timestamp FROM chosen UNION ALL SELECT timestamp FROM chosen_feedback)

-- name: chosen_conversations
-- Those of which nothing is left.
SELECT conversation_id FROM chosen WHERE conversation_id IS NOT NULL
EXCEPT
SELECT conversation_id FROM (
    {interactions}
)
WHERE id NOT IN (SELECT id FROM chosen)

-- name: chosen_users
SELECT user_id FROM chosen WHERE user_id IS NOT NULL UNION SELECT user_id FROM chosen_feedback WHERE user_id IS NOT NULL

-- name: known_users
-- Those of some pseudonyms of which there are events. Of experts there are answers, and sentences may name them.
SELECT user_id FROM interactions WHERE user_id IN (SELECT unnest($users::VARCHAR[]))
UNION
SELECT user_id FROM feedback WHERE user_id IN (SELECT unnest($users::VARCHAR[])) AND source <> 'expert'

-- name: unplaced
-- Whether some chosen feedback is on an answer that is nowhere.
SELECT count(*) > 0 FROM chosen_feedback
WHERE interaction_id NOT IN (
    SELECT id FROM (
        {interactions}
    )
)

-- name: workloads
SELECT DISTINCT workload FROM (
    {interactions}
)
WHERE id IN (SELECT id FROM chosen UNION SELECT interaction_id FROM chosen_feedback)
ORDER BY workload

-- name: columns
-- The text columns of the tables, without those of views.
SELECT c.table_name, c.column_name, c.data_type
FROM duckdb_columns() AS c
JOIN duckdb_tables() AS t ON t.table_oid = c.table_oid AND t.database_name = c.database_name
WHERE c.database_name = $database AND NOT c.internal AND c.data_type IN ('VARCHAR', 'JSON')
ORDER BY c.table_name, c.column_index

-- name: judged_otherwise
-- Interactions that stay, with feedback that goes.
SELECT DISTINCT interaction_id FROM feedback
WHERE id IN (SELECT id FROM erased_feedback) AND interaction_id NOT IN (SELECT id FROM erased_interaction)

-- name: answered
-- Workloads and minutes of interactions that go.
SELECT DISTINCT workload, date_trunc('minute', timestamp) FROM interactions
WHERE id IN (SELECT id FROM erased_interaction)

-- name: entries_feedback
-- Once feedback is archived and its statement forgotten, only the entry of the memory that rests on it names it.
SELECT unnest(from_json(feedback_ids, '["VARCHAR"]')) AS id FROM memory_entries

-- name: entries
-- The entries of the memory that rest on erased feedback, or on feedback about erased interactions, and all of a person:
-- id, whether it rests on such feedback, author, since.
WITH resting AS (
    SELECT id FROM erased_feedback
    UNION
    SELECT feedback_id FROM memory_statements WHERE interaction_id IN (SELECT id FROM erased_interaction)
), found AS (
    SELECT id, list_has_any(from_json(feedback_ids, '["VARCHAR"]'), (SELECT coalesce(list(id), []) FROM resting)) AS is_resting,
           author, since
    FROM memory_entries
)
SELECT * FROM found WHERE is_resting OR author IS NOT NULL

-- name: users_in_texts
-- The users that a column with JSON names, by the ids of the events.
SELECT id, timestamp, unnest(regexp_extract_all({column}::VARCHAR, {pattern})) AS name
FROM {table}
WHERE {found}

-- name: within_spans
SELECT DISTINCT id FROM (
    {source}
) JOIN spans USING (name)
WHERE timestamp >= spans.since AND timestamp < spans.until

-- name: letters
-- The row of each dead letter, a digest of what `quoted` reads, and whether it quotes an erased id; null: it has to be read.
WITH known AS (
    SELECT digest, bool_or(is_quoting) AS is_quoting FROM known_letters GROUP BY digest
), letters AS (
    SELECT rowid AS row, xor(md5_number_lower(payload), hash(received_at)) AS digest, payload, received_at
    FROM dead_letters
    WHERE payload IS NOT NULL
)
SELECT row, digest, is_quoting, if(is_quoting IS NULL, payload, NULL), received_at FROM letters LEFT JOIN known USING (digest)

-- name: experts
SELECT DISTINCT expert FROM label_work

-- name: erased_work
-- What experts did with erased requests ({requests}), what erased experts did, and answers whose comment is erased feedback.
request_id IN (SELECT id FROM label_requests WHERE {requests})
OR EXISTS (FROM erased_expert e WHERE e.name = expert AND label_work.since >= e.since AND label_work.since < e.until)
OR (request_id, comment) IN (
    SELECT r.id, f.value ->> '$' FROM label_requests r JOIN feedback f ON f.interaction_id = r.interaction_id
    WHERE f.name = 'comment' AND f.id IN (SELECT id FROM erased_feedback)
)

-- name: erased_datasets
-- Datasets with erased rows that a version learned. Rows in `validation` ended the trainings of earlier versions of retuned.
SELECT dataset_version, count(DISTINCT row_id) AS rows
FROM dataset_rows
WHERE split IN ('train', 'validation', 'thumbs')
    AND (interaction_id IN (SELECT id FROM erased_interaction) OR feedback_id IN (SELECT id FROM erased_feedback))
GROUP BY dataset_version

-- name: taught_versions
-- The versions whose dataset contains erased rows, and their descendants: workload, version, dataset_version, rows.
WITH RECURSIVE erased AS (
    SELECT unnest($datasets::VARCHAR[]) AS dataset_version, unnest($rows::BIGINT[]) AS rows
), taught AS (
    SELECT workload, version, dataset_version FROM models WHERE dataset_version IN (SELECT dataset_version FROM erased)
    UNION
    SELECT m.workload, m.version, m.dataset_version
    FROM models AS m JOIN taught ON taught.workload = m.workload AND taught.version = m.parent_version
)
SELECT workload, version, dataset_version, coalesce(rows, 0) AS rows
FROM taught LEFT JOIN erased USING (dataset_version)
ORDER BY ALL

-- name: renew_archive
UPDATE archives SET rows = $rows, bytes = $bytes, sha256 = $sha256 WHERE file = $file

-- name: drop_archive
DELETE FROM archives WHERE file = $file

-- name: forget_archived_ids
-- Tombstones keep these ids out.
DELETE FROM archived_ids WHERE hash IN (SELECT md5_number_lower(id) FROM (SELECT unnest($ids::VARCHAR[]) AS id))
