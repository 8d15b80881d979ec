-- What became of conversations, and how much feedback there was on each workload's answers.

-- Conversations that the ledger has counted, moved with its entries. One that goes on on another day is another one.
CREATE TABLE ledger_outcomes (
    workload      VARCHAR NOT NULL,
    day           DATE    NOT NULL,                         -- of its answers
    outcome       VARCHAR NOT NULL,                         -- resolved, unresolved, escalated or unknown
    conversations BIGINT  NOT NULL,
    PRIMARY KEY (workload, day, outcome)
);

-- Those that are booked already, as far as they are in the warehouse.
INSERT INTO ledger_outcomes
WITH answers AS (
    SELECT i.workload, i.timestamp::DATE AS day, coalesce(i.conversation_id, i.id) AS conversation, i.timestamp, i.rowid AS answer,
           bool_or(f.value::VARCHAR = 'true') FILTER (f.name = 'escalated') AS escalated,
           arg_max(f.value::VARCHAR = 'true', (f.timestamp, f.id)) FILTER (f.name = 'resolved') AS resolved
    FROM interactions i LEFT JOIN (
        SELECT * FROM feedback
        WHERE name IN ('escalated', 'resolved') AND value::VARCHAR IN ('true', 'false') AND NOT starts_with(topic, 'import:')
          AND (batch IS NULL OR batch <= (SELECT max(last_batch) FROM ledger_position))
    ) AS f ON f.interaction_id = i.id
    WHERE NOT starts_with(i.topic, 'import:') AND (i.batch IS NULL OR i.batch <= (SELECT max(last_batch) FROM ledger_position))
    GROUP BY ALL
), conversations AS (
    SELECT workload, day, conversation, coalesce(bool_or(escalated), false) AS escalated,
           arg_max(resolved, (timestamp, answer)) FILTER (resolved IS NOT NULL) AS resolved
    FROM answers
    GROUP BY ALL
)
SELECT workload, day,
       CASE WHEN escalated THEN 'escalated' WHEN resolved THEN 'resolved' WHEN NOT resolved THEN 'unresolved' ELSE 'unknown' END,
       count(*)
FROM conversations
GROUP BY ALL;

-- Feedback on answers that are here: what comes before its answer is counted with that. From this version on.
CREATE TABLE feedback_totals (
    workload VARCHAR NOT NULL,
    name     VARCHAR NOT NULL,                              -- one of the reserved names, or other
    source   VARCHAR NOT NULL,
    total    BIGINT  NOT NULL,
    PRIMARY KEY (workload, name, source)
);
