-- name: newest
-- Changes with each event, each decision of a person, each promotion, each version that comes into service and each dataset.
SELECT (SELECT last FROM batches) AS batch,
       (SELECT bit_xor(hash(id)) FROM row_decisions) AS rows,
       (SELECT bit_xor(hash(id)) FROM account_decisions) AS accounts,
       (SELECT count(*) FROM promotions) AS promotions,
       (SELECT max(served_at) FROM deployments) AS served,
       (SELECT max(created_at) FROM datasets) AS datasets

-- name: behind
-- What is stored and decided, and how far the memory has read of it. A fingerprint of decisions is the digest of their ids,
-- the time before which few are still added, and the digest of those before that time; those of the form and of the rules of
-- questions follow.
-- `decided_since`: no older decision is new; null: any may be, as after the clock was set back.
WITH decisions AS (
    SELECT id, decided_at FROM row_decisions WHERE workload = $workload
    UNION ALL
    SELECT id, decided_at FROM account_decisions WHERE workload = $workload OR workload IS NULL
), timed AS (
    SELECT id, decided_at, max(decided_at) OVER () - INTERVAL 1 MINUTE AS settled_until FROM decisions
), now AS (
    SELECT concat_ws('|', coalesce(bit_xor(hash(id)), 0), coalesce(any_value(settled_until)::VARCHAR, ''),
                     coalesce(bit_xor(hash(id)) FILTER (decided_at < settled_until), 0), $form, $rules) AS decided
    FROM timed
), position AS (
    SELECT last_batch, decisions, try_cast(split_part(decisions, '|', 2) AS TIMESTAMP) AS settled_until,
           split_part(decisions, '|', 3) AS settled, split_part(decisions, '|', 4) AS form,
           split_part(decisions, '|', 5) AS rules
    FROM memory_positions WHERE workload = $workload
), before AS (
    SELECT coalesce(bit_xor(hash(d.id)), 0)::VARCHAR AS settled
    FROM decisions d JOIN position p ON d.decided_at < p.settled_until
)
SELECT b.last AS until, p.last_batch AS since, p.decisions AS applied, n.decided,
       CASE WHEN p.settled = e.settled THEN p.settled_until END AS decided_since, coalesce(p.form <> $form, false) AS new_form,
       coalesce(p.rules <> $rules, false) AS new_rules
FROM batches b CROSS JOIN now n CROSS JOIN before e LEFT JOIN position p ON true

-- name: shared_seals
-- The seals of instructions that nearly all recent requests of a workload have in common, of many accounts: lines of the
-- company, not of one customer.
WITH recent AS (
    SELECT attributes ->> '$.sealed_instructions' AS seal, coalesce(user_id, conversation_id, id) AS account
    FROM interactions
    WHERE workload = $workload AND received_at >= $since
    ORDER BY received_at DESC
    LIMIT 1000
)
SELECT seal
FROM recent
WHERE seal IS NOT NULL
GROUP BY seal
HAVING count(*) >= $share * (SELECT count(*) FROM recent) AND count(DISTINCT account) >= $accounts

-- name: missed
-- Whether there are events that the memory has not read and that `fresh` would not find any more.
SELECT 1 FROM feedback WHERE batch > $since AND received_at < $recent
UNION ALL
SELECT 1 FROM interactions WHERE batch > $since AND received_at < $recent
LIMIT 1

-- name: fresh
-- New feedback on answers of the last day, and feedback of the last day on new answers.
SELECT f.id AS feedback_id, f.timestamp AS feedback_at, i.id AS interaction_id, i.timestamp AS answered_at,
       CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account,
       f.name = 'correction' AS correction, f.source = 'expert' AS expert,
       [i.messages, i.context, i.attributes -> '$.tools', question_extras(i.attributes)] AS asked
FROM feedback f JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
  AND f.batch > $since AND i.received_at >= $recent
UNION
SELECT f.id, f.timestamp, i.id, i.timestamp,
       CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END,
       f.name = 'correction', f.source = 'expert', [i.messages, i.context, i.attributes -> '$.tools', question_extras(i.attributes)]
FROM interactions i JOIN feedback f ON f.interaction_id = i.id
WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
  AND i.batch > $since AND f.received_at >= $recent

-- name: of_experts
SELECT id FROM feedback WHERE batch > $since AND name = 'correction' AND source = 'expert'

-- name: experts_unmatched
-- New corrections of experts on answers that are not of the last day, of any workload.
SELECT id FROM feedback
WHERE batch > $since AND list_contains($ids, id)
  AND interaction_id NOT IN (SELECT id FROM interactions WHERE received_at >= $recent)

-- name: older
-- Of corrections on older answers: the only query that reads all ids, for an expert who goes back that far.
SELECT f.id AS feedback_id, f.timestamp AS feedback_at, i.id AS interaction_id, i.timestamp AS answered_at,
       f.user_id AS account, true AS correction, true AS expert,
       [i.messages, i.context, i.attributes -> '$.tools', question_extras(i.attributes)] AS asked
FROM feedback f JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.batch > $since AND list_contains($ids, f.id)

-- name: history
-- All feedback that datasets would be built from, when the memory is switched on: the newest of each kind.
WITH newest AS (
    SELECT f.id FROM feedback f JOIN interactions i ON i.id = f.interaction_id
    WHERE i.workload = $workload AND f.name IN ('correction', 'helpful', 'rating', 'hallucination')
    QUALIFY row_number() OVER (
        PARTITION BY f.name = 'correction', f.source = 'expert' ORDER BY f.timestamp DESC, f.id
    ) <= $limit
)
SELECT f.id AS feedback_id, f.timestamp AS feedback_at, i.id AS interaction_id, i.timestamp AS answered_at,
       CASE WHEN f.source = 'user' THEN coalesce(f.user_id, i.user_id) ELSE f.user_id END AS account,
       f.name = 'correction' AS correction, f.source = 'expert' AS expert,
       [i.messages, i.context, i.attributes -> '$.tools', question_extras(i.attributes)] AS asked
FROM feedback f JOIN interactions i ON i.id = f.interaction_id
WHERE i.workload = $workload AND f.id IN (SELECT id FROM newest)

-- name: add_statements
INSERT INTO memory_statements
    (workload, question_key, feedback_id, feedback_at, interaction_id, answered_at, account, correction, expert)
SELECT $workload, unnest($keys::VARCHAR[]), unnest($feedback::VARCHAR[]), unnest($feedback_at::TIMESTAMP[]),
       unnest($interactions::VARCHAR[]), unnest($answered_at::TIMESTAMP[]), unnest($accounts::VARCHAR[]),
       unnest($corrections::BOOLEAN[]), unnest($experts::BOOLEAN[])

-- name: known_statements
SELECT feedback_id FROM memory_statements WHERE workload = $workload AND list_contains($ids, feedback_id)

-- name: count_statements
SELECT count(*) FROM memory_statements WHERE workload = $workload

-- name: corrected
-- Of some questions those that were ever corrected.
SELECT DISTINCT question_key FROM memory_statements
WHERE workload = $workload AND correction AND list_contains($keys, question_key)

-- name: stated_since
-- Questions with statements after a time; null: with any.
SELECT DISTINCT question_key FROM memory_statements WHERE workload = $workload AND ($since IS NULL OR feedback_at > $since)

-- name: standing
-- Questions whose entries newer statements may end.
SELECT DISTINCT question_key FROM memory_entries WHERE workload = $workload AND state IN ('active', 'frozen', 'retired')

-- name: forget_statements
DELETE FROM memory_statements WHERE workload = $workload

-- name: statements
-- The statements on some questions, and on other questions that the accounts which correct them have answered: the newest of
-- each kind, and all on which entries rest or about which people have decided. Corrections and verdicts, experts and users, and
-- accounts that are banned, trusted or neither do not push each other out. Neither does one account push out others: the last
-- statements of all accounts come first, then the ones before these.
WITH accounts AS (
    SELECT user_id AS account, arg_max(action, (workload IS NOT NULL, decided_at)) AS action
    FROM account_decisions
    WHERE (workload = $workload OR workload IS NULL) AND superseded_at IS NULL AND action <> 'release'
    GROUP BY ALL
), rested_on AS (
    SELECT unnest(from_json(feedback_ids, '["VARCHAR"]')) AS feedback_id FROM memory_entries
    WHERE workload = $workload AND list_contains($keys, question_key) AND state IN ('active', 'frozen', 'retired')
), judged AS (
    SELECT interaction_id FROM row_decisions
    WHERE workload = $workload AND superseded_at IS NULL AND action <> 'release'
), asked AS (
    SELECT s.*, a.action,
           row_number() OVER (
               PARTITION BY question_key, correction, expert, coalesce(account, feedback_id)
               ORDER BY feedback_at DESC, feedback_id
           ) AS turn,
           s.feedback_id IN (SELECT feedback_id FROM rested_on)
               OR s.interaction_id IN (SELECT interaction_id FROM judged) AS is_needed
    FROM memory_statements s LEFT JOIN accounts a USING (account)
    WHERE s.workload = $workload AND list_contains($keys, s.question_key)
), own AS (
    SELECT * FROM asked
    QUALIFY is_needed OR $most >= row_number() OVER (
        PARTITION BY question_key, correction, expert, action ORDER BY turn, feedback_at DESC, feedback_id
    )
), others AS (
    SELECT question_key FROM memory_statements
    WHERE workload = $workload AND account IN (SELECT account FROM own WHERE correction AND account IS NOT NULL)
      AND NOT list_contains($keys, question_key)
    QUALIFY row_number() OVER (PARTITION BY account ORDER BY feedback_at DESC, feedback_id) <= $elsewhere
), asked_beside AS (
    SELECT s.*, a.action,
           row_number() OVER (
               PARTITION BY question_key, correction, expert, coalesce(account, feedback_id)
               ORDER BY feedback_at DESC, feedback_id
           ) AS turn
    FROM memory_statements s LEFT JOIN accounts a USING (account)
    WHERE s.workload = $workload AND s.question_key IN (SELECT question_key FROM others)
), beside AS (
    SELECT * FROM asked_beside
    QUALIFY $most >= row_number() OVER (
        PARTITION BY question_key, correction, expert, action ORDER BY turn, feedback_at DESC, feedback_id
    )
)
SELECT question_key, feedback_id, feedback_at, interaction_id, answered_at FROM own
UNION ALL
SELECT question_key, feedback_id, feedback_at, interaction_id, answered_at FROM beside

-- name: decided_about
-- The questions with statements about which people have decided since a time; null: ever.
SELECT DISTINCT question_key FROM memory_statements
WHERE workload = $workload AND (
    interaction_id IN (
        SELECT interaction_id FROM row_decisions WHERE workload = $workload AND ($since IS NULL OR decided_at >= $since)
    ) OR account IN (
        SELECT user_id FROM account_decisions
        WHERE (workload = $workload OR workload IS NULL) AND ($since IS NULL OR decided_at >= $since)
    )
)

-- name: learned_until
-- The newest evidence of the dataset that the champion learned from.
SELECT coalesce(try_cast(d.card ->> 'evidence_until' AS TIMESTAMP), d.created_at) AS until
FROM aliases a
JOIN models m ON m.workload = a.workload AND m.version = a.version
JOIN datasets d ON d.workload = a.workload AND d.version = m.dataset_version
WHERE a.workload = $workload AND a.alias = 'champion'

-- name: set_position
INSERT INTO memory_positions
SELECT $workload, $until, $decided WHERE NOT EXISTS (FROM memory_positions WHERE workload = $workload)

-- name: move_position
UPDATE memory_positions SET last_batch = $until, decisions = $decided WHERE workload = $workload

-- name: begin_epoch
INSERT INTO memory_epoch SELECT $epoch WHERE NOT EXISTS (FROM memory_epoch)

-- name: epoch
SELECT epoch FROM memory_epoch

-- name: new_epoch
UPDATE memory_epoch SET epoch = $epoch

-- name: last_sequence
SELECT coalesce(max(sequence), 0) AS last FROM memory_entries

-- name: of_keys
SELECT * FROM memory_entries WHERE workload = $workload AND list_contains($keys, question_key) ORDER BY sequence

-- name: to_identify
-- Entries in force, or kept from coming back, the newest first, with what their questions were read with.
SELECT id, question_key AS key, messages, context, tools, extras, state FROM memory_entries
WHERE workload = $workload AND state IN ('active', 'frozen', 'retired') ORDER BY since DESC, id

-- name: set_key
UPDATE memory_entries SET question_key = $key, sequence = $sequence WHERE id = $id

-- name: of_ids
SELECT * FROM memory_entries WHERE list_contains($ids, id)

-- name: newer
-- The newest entry of the same question that is in force, or was added later and not rejected.
SELECT other.id, other.state
FROM memory_entries one JOIN memory_entries other USING (workload, question_key)
WHERE one.id = $id AND other.id != one.id
    AND (other.state IN ('active', 'frozen') OR (other.added_at > one.added_at AND other.state NOT IN ('removed', 'overruled')))
ORDER BY other.added_at DESC, other.id
LIMIT 1

-- name: change
UPDATE memory_entries
SET state = $state, reason = $reason, changed_by = $by, changed_at = $now, sequence = $sequence,
    retired_by = coalesce($version, retired_by)
WHERE id = $id

-- name: beyond_account
-- Entries in force of accounts that have more than their budget, the oldest ones.
SELECT id FROM memory_entries
WHERE workload = $workload AND state = 'active' AND source = 'users' AND author IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY author ORDER BY since DESC, id) > $most

-- name: beyond_all
SELECT id FROM memory_entries
WHERE workload = $workload AND state = 'active'
QUALIFY row_number() OVER (ORDER BY since DESC, id) > $most

-- name: workloads
SELECT DISTINCT workload FROM memory_entries

-- name: feed
SELECT id, workload, question_key AS key, CASE WHEN state = 'active' THEN question ELSE '' END AS question,
       CASE WHEN state = 'active' THEN answer ELSE '' END AS answer, since, threshold, sequence, state
FROM memory_entries
WHERE sequence > $after AND list_contains($workloads, workload) AND ($after > 0 OR state = 'active')
ORDER BY sequence
LIMIT $limit

-- name: listed
SELECT id, workload, question, answer, source, author, since, added_at, state, reason, changed_by, changed_at, threshold,
       retired_by
FROM memory_entries
WHERE workload = $workload AND ($state IS NULL OR state = $state)
ORDER BY changed_at DESC, sequence DESC
LIMIT $limit

-- name: counts
SELECT workload, state, count(*) AS entries FROM memory_entries GROUP BY ALL

-- name: changed
-- Of all workloads, for look-ups in the daemon.
SELECT id, workload, question_key AS key, question, answer, since, threshold, sequence, state
FROM memory_entries WHERE sequence > $after ORDER BY sequence LIMIT $limit

-- name: changes_of
SELECT coalesce(max(sequence), 0) AS last FROM memory_entries WHERE workload = $workload

-- name: active
SELECT id, question_key AS key, messages, question, context, tools, extras, answer, threshold, changed_at FROM memory_entries
WHERE workload = $workload AND state = 'active' ORDER BY since DESC, id LIMIT $limit

-- name: set_threshold
UPDATE memory_entries SET threshold = $threshold, sequence = $sequence WHERE id = $id AND state = 'active'

-- name: paraphrases
-- Recorded questions that entries helped as related ones, the newest.
SELECT u.entry_id, i.messages
FROM memory_uses u JOIN interactions i ON i.id = u.interaction_id
WHERE u.workload = $workload AND u.match = 'related' AND list_contains($entries, u.entry_id)
QUALIFY row_number() OVER (PARTITION BY u.entry_id ORDER BY u.answered_at DESC, u.interaction_id) <= $most

-- name: learned
-- Entries whose questions the champion answered right in its evaluation, all of them, once no version before it answers. An
-- entry that changed since is another.
WITH champion AS (
    SELECT a.version, m.run_id, m.created_at
    FROM aliases a JOIN models m ON m.workload = a.workload AND m.version = a.version
    WHERE a.workload = $workload AND a.alias = 'champion'
        AND (NOT $has_targets OR (a.workload, a.version) IN (
            SELECT (workload, version) FROM deployments WHERE served_at IS NOT NULL
        ))
        AND (a.workload, a.version) NOT IN (SELECT (workload, version) FROM rollouts WHERE ended_at IS NULL)
), asked AS (
    SELECT split_part(e.row_id, ':', 1) AS id, bool_and(e.score = 1) AS right
    FROM evaluations e JOIN champion c ON e.run_id = c.run_id AND e.model = c.version
    WHERE e.workload = $workload AND e.split = 'memory'
    GROUP BY ALL
)
SELECT m.id, c.version
FROM memory_entries m JOIN asked USING (id) CROSS JOIN champion c
WHERE m.workload = $workload AND m.state = 'active' AND asked.right AND m.changed_at <= c.created_at

-- name: unlearned
-- Entries that a version had learned which is newer than the champion: it was taken back, or another one was promoted.
WITH champion AS (
    SELECT m.created_at FROM aliases a JOIN models m ON m.workload = a.workload AND m.version = a.version
    WHERE a.workload = $workload AND a.alias = 'champion'
)
SELECT m.id, m.retired_by AS version
FROM memory_entries m
JOIN models learned ON learned.workload = m.workload AND learned.version = m.retired_by
LEFT JOIN champion c ON true
WHERE m.workload = $workload AND m.state = 'retired' AND coalesce(c.created_at < learned.created_at, true)

-- name: blank
UPDATE memory_entries
SET messages = '[]', question = '', context = NULL, tools = NULL, extras = NULL, answer = '', author = NULL, feedback_ids = '[]',
    state = 'removed', reason = 'the events that it rests on are erased', changed_by = NULL, changed_at = $now,
    sequence = $sequence, threshold = NULL
WHERE id = $id

-- name: forget_old
DELETE FROM memory_statements WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND feedback_at < $before

-- name: forget_ended
-- The last change stays, as sequences continue from it.
DELETE FROM memory_entries
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND state NOT IN ('active', 'frozen', 'retired') AND changed_at < $before
    AND sequence < (SELECT max(sequence) FROM memory_entries)
