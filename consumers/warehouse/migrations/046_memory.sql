-- The memory of corrections: approved answers that the gateway gives to the model until its weights have learned them.
CREATE TABLE memory_entries (
    id           VARCHAR   NOT NULL,
    workload     VARCHAR   NOT NULL,
    question_key VARCHAR   NOT NULL,                -- identity of the question, hex
    messages     JSON      NOT NULL USING COMPRESSION zstd, -- the conversation, redacted
    question     VARCHAR   NOT NULL USING COMPRESSION zstd, -- its last user message
    context      JSON USING COMPRESSION zstd,       -- list of retrieved passages
    tools        JSON USING COMPRESSION zstd,       -- schemas that the model was offered
    answer       VARCHAR   NOT NULL USING COMPRESSION zstd, -- the approved answer
    source       VARCHAR   NOT NULL,                -- expert, users, or person: added by an operation
    author       VARCHAR,                           -- principal, or keyed hash of the account whose wording it is
    feedback_ids JSON      NOT NULL,                -- the feedback that it rests on
    since        TIMESTAMP NOT NULL,                -- time of the statement
    added_at     TIMESTAMP NOT NULL,
    state        VARCHAR   NOT NULL,                -- active, frozen, superseded, overruled, withdrawn, retired, expired or removed
    reason       VARCHAR   NOT NULL,                -- of the state, for a person; empty: it was added
    changed_by   VARCHAR,                           -- who changed it last; null: retuned
    changed_at   TIMESTAMP NOT NULL,
    sequence     BIGINT    NOT NULL,                -- grows with every change
    threshold    DOUBLE,                            -- least similarity of a related question; null: the same question only
    retired_by   VARCHAR                            -- the version that has learned it
);

-- The feedback that states an answer, by question. Corrections of a question are found without reading all events.
CREATE TABLE memory_statements (
    workload       VARCHAR   NOT NULL,
    question_key   VARCHAR   NOT NULL,
    feedback_id    VARCHAR   NOT NULL,
    feedback_at    TIMESTAMP NOT NULL,
    interaction_id VARCHAR   NOT NULL,
    answered_at    TIMESTAMP NOT NULL,
    account        VARCHAR,                         -- keyed hash of who gave the feedback
    correction     BOOLEAN   NOT NULL               -- false: a verdict on the answer
);

-- How far the memory has read, for each workload.
CREATE TABLE memory_positions (
    workload   VARCHAR NOT NULL,
    last_batch BIGINT  NOT NULL,                    -- feedback of this transaction and all before it is included
    decisions  VARCHAR NOT NULL                     -- fingerprint of what is applied: decisions of people, and the labels or the schema that programs read
);

-- Sequence numbers are comparable within one epoch: one row, once a workload has the memory.
CREATE TABLE memory_epoch (
    epoch VARCHAR NOT NULL
);

-- Look-ups in the memory that found an entry: one row for each answer and entry.
CREATE TABLE memory_uses (
    workload       VARCHAR   NOT NULL,
    interaction_id VARCHAR   NOT NULL,
    answered_at    TIMESTAMP NOT NULL,
    entry_id       VARCHAR   NOT NULL,              -- memory_entries.id
    held_out       BOOLEAN   NOT NULL,              -- the entry was not given, to measure its effect
    match          VARCHAR,                         -- same or related
    similarity     DOUBLE
);

-- How far memory_uses follows the events: one row.
CREATE TABLE memory_uses_position (
    last_batch BIGINT NOT NULL                      -- answers of this transaction and all before it are included
);
INSERT INTO memory_uses_position SELECT last FROM batches;
