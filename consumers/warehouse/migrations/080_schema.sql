-- The schema of retuned 1.0. Comments on tables and columns become their descriptions in the file (COMMENT ON).
-- All timestamps are UTC. Texts are zstd: half the size, and checkpoints are twice as fast, for slower full scans.

-- A migration that was applied to this file.
CREATE TABLE schema_migrations (
    number INTEGER NOT NULL,      -- of the migration
    name VARCHAR NOT NULL,        -- of its file
    applied_at TIMESTAMP NOT NULL -- when it was applied
);

-- What a model was asked and what it answered: one event, redacted.
CREATE TABLE interactions (
    id VARCHAR NOT NULL,                              -- unique; a second event with the same id is a duplicate
    timestamp TIMESTAMP NOT NULL,                     -- when it happened
    workload VARCHAR NOT NULL,                        -- the kind of request: a route, an agent node
    model VARCHAR NOT NULL,                           -- the name under which the answering model is served
    messages JSON NOT NULL USING COMPRESSION zstd,    -- The prompt: objects with `role` and `content`; other fields
                                                      -- are kept.
    response VARCHAR NOT NULL USING COMPRESSION zstd, -- the answer of the model
    context JSON USING COMPRESSION zstd,              -- list of retrieved passages
    conversation_id VARCHAR,                          -- events that have it in common are one conversation
    user_id VARCHAR,                                  -- keyed hash
    latency_seconds DOUBLE,                           -- time that the answer took, as the app measured it
    time_to_first_token_seconds DOUBLE,               -- time to the first token, as the app measured it
    input_tokens BIGINT,                              -- tokens of the prompt
    output_tokens BIGINT,                             -- tokens of the answer
    cost DOUBLE,                                      -- of the answer, in `roi.currency`
    finish_reason VARCHAR,                            -- as the model server reports it
    attributes JSON USING COMPRESSION zstd,           -- any other values, by name
    topic VARCHAR NOT NULL,                           -- Kafka topic; `import:` and a hash for a file
    partition INTEGER NOT NULL,                       -- of the topic
    "offset" BIGINT NOT NULL,                         -- in the partition
    received_at TIMESTAMP NOT NULL,                   -- when it was stored
    batch BIGINT                                      -- number of the transaction that stored it
);

-- What somebody thought of an answer: one event, redacted.
CREATE TABLE feedback (
    id VARCHAR NOT NULL,             -- unique; a second event with the same id is a duplicate
    timestamp TIMESTAMP NOT NULL,    -- when it happened
    interaction_id VARCHAR NOT NULL, -- the answer that it is about; the feedback may come first
    name VARCHAR NOT NULL,           -- what is stated, for example `helpful`, `rating` or `correction`
    value JSON NOT NULL,             -- boolean, number or string
    source VARCHAR NOT NULL,         -- who says so: user, expert, judge or app
    user_id VARCHAR,                 -- keyed hash
    topic VARCHAR NOT NULL,          -- Kafka topic; `import:` and a hash for a file
    partition INTEGER NOT NULL,      -- of the topic
    "offset" BIGINT NOT NULL,        -- in the partition
    received_at TIMESTAMP NOT NULL,  -- when it was stored
    batch BIGINT                     -- number of the transaction that stored it
);

-- A message that is no event: why, and its redacted payload.
CREATE TABLE dead_letters (
    topic VARCHAR NOT NULL,                 -- Kafka topic; `import:` and a hash for a file
    partition INTEGER NOT NULL,             -- of the topic
    "offset" BIGINT NOT NULL,               -- in the partition
    reason VARCHAR NOT NULL,                -- a code
    detail VARCHAR NOT NULL,                -- what was wrong, for a person
    payload VARCHAR USING COMPRESSION zstd, -- the message, redacted; null: it was empty, or could not be redacted
    received_at TIMESTAMP NOT NULL,         -- when it was stored
    workload VARCHAR                        -- the one that it names, if it does
);

-- How far a partition, or a file that was imported, is read; on a cluster, how many replays there were.
CREATE TABLE offsets (
    topic VARCHAR NOT NULL,      -- Kafka topic; `import:` and a hash for a file
    partition INTEGER NOT NULL,  -- of the topic
    next_offset BIGINT NOT NULL, -- the first one that was not read
    cluster_id VARCHAR,          -- of Kafka; null: not known, or a file
    topic_id VARCHAR,            -- of Kafka: another one is another topic of that name; null: not known
    PRIMARY KEY (topic, partition)
);

-- A dataset: its folder, its size, its card. It stays when retention removes the folder.
CREATE TABLE datasets (
    version VARCHAR NOT NULL,      -- hash of its content
    workload VARCHAR NOT NULL,     -- the kind of request
    created_at TIMESTAMP NOT NULL, -- when it was made
    path VARCHAR NOT NULL,         -- its folder
    train BIGINT NOT NULL,         -- rows to train on
    holdout BIGINT NOT NULL,       -- rows that the gate judges on
    replay BIGINT NOT NULL,        -- rows of train that repeat an older dataset
    card JSON NOT NULL,            -- all of `card.json`
    removed_at TIMESTAMP,          -- when retention deleted its folder and its rows in dataset_rows; null: they are
                                   -- there
    decisions VARCHAR              -- hash of the decisions of people in force when it was last built; null: unknown,
                                   -- of earlier releases
);

-- A row of a dataset, and the events that it came from.
CREATE TABLE dataset_rows (
    dataset_version VARCHAR NOT NULL, -- the row of datasets
    row_id VARCHAR NOT NULL,          -- hash of prompt and completion
    split VARCHAR NOT NULL,           -- train, holdout, regression, thumbs or traffic
    prompt_hash VARCHAR NOT NULL,     -- of the normalised prompt
    interaction_id VARCHAR NOT NULL,  -- the answer that the feedback is about
    feedback_id VARCHAR NOT NULL      -- the correction or acceptance it came from; empty in traffic
);

-- A retraining, from its reasons to its end.
CREATE TABLE runs (
    id VARCHAR NOT NULL,            -- unique; the name of its folder
    workload VARCHAR NOT NULL,      -- the kind of request
    reasons JSON NOT NULL,          -- why it was started
    state VARCHAR NOT NULL,         -- waiting, running, interrupted, succeeded, refused, failed or cancelled
    started_at TIMESTAMP NOT NULL,  -- while it waits: when it was put in line
    finished_at TIMESTAMP,          -- when it ended; null: it waits, is under way, or was interrupted
    dataset_version VARCHAR,        -- the row of datasets; null: none was made
    parent_version VARCHAR,         -- the version that training began from; null: the base model, or no dataset was
                                    -- made
    version VARCHAR,                -- the candidate
    train_seconds DOUBLE,           -- wall time of the training
    evaluate_seconds DOUBLE,        -- wall time of the evaluation
    detail JSON,                    -- how it ended, as one object: scores, figures, reasons, what the training
                                    -- reported
    error VARCHAR,                  -- why it failed, was refused or cancelled
    attempts INTEGER,               -- how often it was begun and neither ended nor stopped; null: not counted
    at_any_hour BOOLEAN,            -- it does not wait for schedule.training_hours; null: it does
    judge_tokens BIGINT,            -- that a language model was paid for, to judge answers
    kind VARCHAR DEFAULT 'retrain', -- retrain, or rebase: trained anew on another base model
    base_model VARCHAR,             -- of a rebase: the folder of that base model
    start_version VARCHAR,          -- the version from which the training starts, or base
    cause VARCHAR                   -- policy, person, or erasure (nothing else asked for it); null: policy
);

-- One answer of one model to a row, with what was measured of it.
CREATE TABLE evaluations (
    run_id VARCHAR NOT NULL,          -- the row of runs
    workload VARCHAR NOT NULL,        -- the kind of request
    dataset_version VARCHAR NOT NULL, -- the row of datasets
    model VARCHAR NOT NULL,           -- base, a version, or logged: what production answered
    split VARCHAR NOT NULL,           -- holdout, slices (further rows of it, for small slices alone), regression,
                                      -- traffic, general or fold: what the candidate learned, answered by a model that
                                      -- did not
    row_id VARCHAR NOT NULL,          -- the row of dataset_rows
    score DOUBLE,                     -- of the metric, 0 to 1; null: it abstains
    token_f1 DOUBLE NOT NULL,         -- F1 of the answer's tokens and those of the approved one
    loss DOUBLE,                      -- of the completion, nats per token; null for logged answers
    hallucinated BOOLEAN,             -- null: cannot be told
    latency_seconds DOUBLE,           -- time for the answer's tokens at the pace that the evaluation measured; null
                                      -- for logged answers
    output VARCHAR NOT NULL,          -- the answer
    topic VARCHAR,                    -- of the row's question, as the dataset names topics; null: not known
    origin VARCHAR,                   -- dataset in whose holdout a regression row first stood
    language VARCHAR,                 -- ISO 639-1; null: too short to tell
    turns INTEGER,                    -- questions in the conversation
    with_context BOOLEAN,             -- the row has passages
    grounded DOUBLE,                  -- share of its values that context or question hold
    consistency DOUBLE,               -- of tone and format with the approved answer, 0 to 1
    refused BOOLEAN,                  -- the answer refuses, and the approved one does not
    length_ratio DOUBLE,              -- words over those of the approved answer
    verdict VARCHAR,                  -- of the LLM judge on the candidate: win, tie or loss
    output_tokens INTEGER,            -- tokens of the answer; null for logged answers
    kind VARCHAR,                     -- of the row: correction, or accepted (the logged answer was good)
    detail VARCHAR,                   -- of the score, for people
    valid BOOLEAN,                    -- the answer has the form that programs read; null: no form is asked for
    answered VARCHAR,                 -- the label that the answer was read as; null: none
    groups JSON,                      -- slices by the approved answer: list of label:…, field:…, tool:…
    agreement DOUBLE                  -- of the candidate's answer with the champion's, or else with the logged one, 0
                                      -- to 1
);

-- A decision of the policy (retrain or not) or of the gate (promote or not), with all reasons.
CREATE TABLE decisions (
    id VARCHAR NOT NULL,           -- unique
    created_at TIMESTAMP NOT NULL, -- when it was made
    workload VARCHAR NOT NULL,     -- the kind of request
    kind VARCHAR NOT NULL,         -- retrain or gate
    outcome BOOLEAN NOT NULL,      -- true: yes
    reasons JSON NOT NULL,         -- list of sentences
    figures JSON NOT NULL,         -- numbers behind the reasons
    run_id VARCHAR,                -- of the gate: the row of runs; null: of the policy
    metric VARCHAR                 -- by which the answers were scored
);

-- A version: an adapter, or all weights, under the hash of its content. It stays when retention removes the folder.
CREATE TABLE models (
    version VARCHAR NOT NULL,         -- hash of its content
    workload VARCHAR NOT NULL,        -- the kind of request
    created_at TIMESTAMP NOT NULL,    -- when it was made
    path VARCHAR NOT NULL,            -- its folder
    base_model VARCHAR NOT NULL,      -- folder of the base model
    base_hash VARCHAR NOT NULL,       -- hash that tells base models apart
    parent_version VARCHAR,           -- the version that training began from; null: the base model
    dataset_version VARCHAR NOT NULL, -- the dataset that it learned from
    run_id VARCHAR NOT NULL,          -- the run that made it
    manifest JSON NOT NULL,           -- all of `manifest.json`
    removed_at TIMESTAMP              -- when retention deleted its folder and its evaluations; null: they are there
);

-- Which version serves a workload, which one did before, and which one is a canary.
CREATE TABLE aliases (
    workload VARCHAR NOT NULL,    -- the kind of request
    alias VARCHAR NOT NULL,       -- champion, previous or canary
    version VARCHAR,              -- null: the base model
    created_at TIMESTAMP NOT NULL -- since when
);

-- A change of what serves: a promotion, a rollback, or a step of a rollout.
CREATE TABLE promotions (
    id VARCHAR NOT NULL,           -- unique; of the message, too
    created_at TIMESTAMP NOT NULL, -- when it was changed
    workload VARCHAR NOT NULL,     -- the kind of request
    event VARCHAR NOT NULL,        -- promoted and rolled_back, of the champion; canary: it got a share;
                                   -- canary_rolled_back; completed: the holdback has ended
    version VARCHAR,               -- null: the base model
    previous_version VARCHAR,      -- the version that served before, and answers the rest; of a rollback, what was
                                   -- taken back; null: the base model
    actor VARCHAR NOT NULL,        -- gate, approver (a person who approved what the gate passed), operator, watch or
                                   -- rollout
    reason VARCHAR NOT NULL,       -- why
    announced BOOLEAN NOT NULL,    -- the message is on the model-events topic
    share DOUBLE,                  -- of the traffic that the version answers from then on, previous_version answers
                                   -- the rest; null: all
    experiment VARCHAR             -- the row of rollouts; null: it was changed at once
);

-- A drift check of a workload, for `retention.history_days`; of those without drift the last of each hour, after
-- `retention.detail_days`.
CREATE TABLE drift_checks (
    id VARCHAR NOT NULL,            -- unique; its report is `/reports/` and this
    created_at TIMESTAMP NOT NULL,  -- when it was made
    workload VARCHAR NOT NULL,      -- the kind of request
    drifted BOOLEAN,                -- null: too few rows to tell
    severity DOUBLE,                -- how far what moved furthest did: a share of events
    features JSON NOT NULL,         -- list of {feature, method, threshold, value, drifted, reference, current,
                                    -- distance, example}
    reference_rows BIGINT NOT NULL, -- conversations of the reference that were compared
    current_rows BIGINT NOT NULL,   -- conversations of the current window that were compared
    report VARCHAR,                 -- path of the JSON report; the page is beside it
    detail VARCHAR NOT NULL,        -- what moved, in a sentence
    severity_low DOUBLE,            -- lower end of its 95% interval
    severity_high DOUBLE,           -- upper end of its 95% interval
    missing BIGINT,                 -- conversations that the windows lack; null: none was missing
    estimate JSON                   -- {rate, low, high, votes, before, segments, moved}; null: too few votes
);

-- A figure of a workload with its interval: of each minute for `retention.detail_days`, then the last of each hour,
-- after 30 days the last of each day.
CREATE TABLE quality (
    created_at TIMESTAMP NOT NULL, -- when it was measured
    workload VARCHAR NOT NULL,     -- the kind of request
    model VARCHAR NOT NULL,        -- '*': all models of the window
    metric VARCHAR NOT NULL,       -- name of the figure
    source VARCHAR NOT NULL,       -- user, expert, judge, app, llm, nli, grounding, grounding_calibrated or features
    value DOUBLE NOT NULL,         -- of the figure
    low DOUBLE NOT NULL,           -- lower end of its 95% interval
    high DOUBLE NOT NULL,          -- upper end of its 95% interval
    n BIGINT NOT NULL              -- how many answers or pairs it is computed from
);

-- A gain or a cost. A correction is another entry. Entries of one day are summed after `retention.detail_days`.
CREATE TABLE ledger (
    id VARCHAR NOT NULL,           -- unique
    created_at TIMESTAMP NOT NULL, -- when it was booked
    workload VARCHAR NOT NULL,     -- the kind of request
    kind VARCHAR NOT NULL,         -- gain or cost
    item VARCHAR NOT NULL,         -- what was gained, or paid for
    quantity DOUBLE NOT NULL,      -- how much, in the unit
    unit VARCHAR NOT NULL,         -- of the quantity
    rate DOUBLE NOT NULL,          -- per unit
    amount DOUBLE NOT NULL,        -- quantity × rate; below zero: it corrects another, or is a loss
    reference VARCHAR NOT NULL,    -- what it was counted from
    version VARCHAR,               -- null: the base model, or another that is none of ours
    promotion VARCHAR,             -- the row of promotions in force; null: before the first, and for the costs of
                                   -- producing a version and of its shadow
    period_start TIMESTAMP,        -- first and last of what was counted; its day's rate holds
    period_end TIMESTAMP           -- end of that period
);

-- A Parquet file of the archive.
CREATE TABLE archives (
    file VARCHAR NOT NULL,                -- below the folder of the archive
    table_name VARCHAR NOT NULL,          -- interactions, feedback or dead_letters
    rows BIGINT NOT NULL,                 -- how many rows it holds
    bytes BIGINT NOT NULL,                -- of the file
    first_received_at TIMESTAMP NOT NULL, -- when the first of its rows was received
    last_received_at TIMESTAMP NOT NULL,  -- when the last of its rows was received
    sha256 VARCHAR NOT NULL,              -- of the file
    archived_at TIMESTAMP NOT NULL,       -- when it was written
    workloads VARCHAR[]                   -- of the events in the file, '' for events of none; null: not read yet
);

-- An answer that experts were asked to judge, and the feedback that answered.
CREATE TABLE label_requests (
    id VARCHAR NOT NULL,             -- unique; of the message, too
    created_at TIMESTAMP NOT NULL,   -- when it was asked
    workload VARCHAR NOT NULL,       -- the kind of request
    interaction_id VARCHAR NOT NULL, -- asked about once
    reason VARCHAR NOT NULL,         -- the weightiest that spoke for it, or calibration
    detail VARCHAR NOT NULL,         -- all that spoke for it, for a person
    score DOUBLE,                    -- how likely the answer is wrong, 0 to 1
    announced BOOLEAN NOT NULL,      -- the message is on the label-requests topic
    answered_at TIMESTAMP,           -- when an expert's answer was received
    feedback_id VARCHAR,             -- that answer
    probability DOUBLE,              -- of calibration: chance of each answer of its kind to be drawn
    first_feedback_id VARCHAR,       -- of conflict: the feedback that states one answer
    second_feedback_id VARCHAR,      -- and the other one
    alarm BOOLEAN                    -- of calibration: whether a scorer alarmed
);

-- A look at a new champion in service, beside the one before it: each for `retention.detail_days`, then the last of
-- each hour.
CREATE TABLE watch_checks (
    id VARCHAR NOT NULL,           -- unique
    created_at TIMESTAMP NOT NULL, -- when it was made
    workload VARCHAR NOT NULL,     -- the kind of request
    promotion_id VARCHAR NOT NULL, -- what is watched
    version VARCHAR NOT NULL,      -- the champion that is watched
    previous_version VARCHAR,      -- the champion before it; null: the base model
    since TIMESTAMP NOT NULL,      -- when the version was promoted
    until TIMESTAMP NOT NULL,      -- when the watch ends
    verdict VARCHAR NOT NULL,      -- keep, roll_back or go_on
    comparisons JSON NOT NULL,     -- list of {metric, source, bad_before, n_before, bad_after, n_after, worse,
                                   -- as_good}
    reasons JSON NOT NULL,         -- list of sentences
    votes_per_day DOUBLE,          -- votes a day, by who gave them; null: not counted by the version that looked
    seconds_to_find DOUBLE         -- how long after the promotion a fall of 20 points shows; null: not within a year
);

-- Sums and products by conversation, from which the intervals of gains and ROI are computed.
CREATE TABLE ledger_moments (
    workload VARCHAR NOT NULL,     -- the kind of request
    version VARCHAR NOT NULL,      -- '': none of ours
    promotion VARCHAR NOT NULL,    -- '': before the first
    hour TIMESTAMP NOT NULL,       -- in which the conversation began
    conversations BIGINT NOT NULL, -- how many conversations
    interactions BIGINT NOT NULL,  -- how many interactions
    gain DOUBLE NOT NULL,          -- sum over the conversations
    cost DOUBLE NOT NULL,          -- sum over the conversations
    gain_squared DOUBLE NOT NULL,  -- sum of squares over the conversations
    cost_squared DOUBLE NOT NULL,  -- sum of squares over the conversations
    gain_cost DOUBLE NOT NULL,     -- sum of products over the conversations
    PRIMARY KEY (workload, version, promotion, hour)
);

-- Numbers that events reported and that are beyond what one event may book.
CREATE TABLE ledger_left_out (
    created_at TIMESTAMP NOT NULL, -- when it was left out
    workload VARCHAR NOT NULL,     -- the kind of request
    item VARCHAR NOT NULL,         -- of the ledger
    reported BIGINT NOT NULL       -- numbers beyond the limit
);

-- The number of the last transaction that stored events: one row.
CREATE TABLE batches (
    last BIGINT NOT NULL -- the number
);
INSERT INTO batches VALUES (1);

-- How far the ledger has booked: one row.
CREATE TABLE ledger_position (
    last_batch BIGINT NOT NULL, -- this one and all before it are booked
    booked_at TIMESTAMP         -- when the ledger was last booked; null: never
);
INSERT INTO ledger_position VALUES (0, NULL);

-- A time at which an operator had ingestion go on after too many dead letters.
CREATE TABLE ingest_resumptions (
    resumed_at TIMESTAMP NOT NULL, -- when it was asked for
    caught_up_at TIMESTAMP         -- null: not yet, and no number of dead letters stops it
);

-- A pause of retraining, of one workload or of all.
CREATE TABLE pauses (
    workload VARCHAR,              -- null: all workloads
    created_at TIMESTAMP NOT NULL, -- since when
    actor VARCHAR NOT NULL,        -- who asked for it
    reason VARCHAR NOT NULL,       -- why
    ended_at TIMESTAMP,            -- null: in force
    ended_by VARCHAR               -- who ended it
);

-- A vote or a correction beside the answer that it is about, so that nothing joins `feedback` and `interactions` each
-- minute. It follows them within one.
CREATE TABLE judgements (
    workload VARCHAR NOT NULL,             -- the kind of request
    interaction_id VARCHAR NOT NULL,       -- the answer that it is about
    answered_at TIMESTAMP NOT NULL,        -- time of the interaction
    answer_received_at TIMESTAMP NOT NULL, -- when the interaction was received
    demonstration BOOLEAN NOT NULL,        -- it is nobody's traffic
    imported BOOLEAN NOT NULL,             -- the interaction came from a file
    feedback_id VARCHAR NOT NULL,          -- the feedback
    name VARCHAR NOT NULL,                 -- helpful or hallucination, as in the view votes; or correction
    value BOOLEAN,                         -- null: of a correction
    source VARCHAR NOT NULL,               -- user, expert, judge or app
    user_id VARCHAR,                       -- keyed hash of who judged
    timestamp TIMESTAMP NOT NULL,          -- time of the feedback
    received_at TIMESTAMP NOT NULL,        -- when the later of both was received
    conversation VARCHAR,                  -- of the interaction; its id, where it names none
    model VARCHAR,                         -- that answered
    asker_id VARCHAR                       -- keyed hash of who asked
);

-- How far `judgements` follows the events: one row.
CREATE TABLE judgements_position (
    last_batch BIGINT NOT NULL -- what this transaction and those before it stored is in judgements
);
INSERT INTO judgements_position VALUES (-1);

-- Users' votes on the model in service over one length of the current window, for the policy. What is over is counted
-- once.
CREATE TABLE rating_periods (
    workload VARCHAR NOT NULL, -- the kind of request
    since TIMESTAMP NOT NULL,  -- when the model came into service: where period 0 begins
    seconds DOUBLE NOT NULL,   -- length of a period
    period INTEGER NOT NULL,   -- its number
    helpful BIGINT NOT NULL,   -- of the total, so many called the answer helpful
    total BIGINT NOT NULL,     -- votes
    effect DOUBLE,             -- design effect: so many votes are worth one; null: of an old count
    version VARCHAR,           -- whose answers count; null: of an old count
    decisions VARCHAR          -- fingerprint of the decisions about accounts that were known
);

-- A monitor of a workload that has too few rows to report anything. No row: it has enough.
CREATE TABLE blindness (
    workload VARCHAR NOT NULL, -- the kind of request
    monitor VARCHAR NOT NULL,  -- quality, policy, drift or hallucination
    found BIGINT NOT NULL,     -- it has so many
    needed BIGINT NOT NULL,    -- of so many
    what VARCHAR NOT NULL,     -- what is counted, for a person
    since TIMESTAMP NOT NULL   -- when it first had too few
);

-- A current window that an operator made the reference of drift checks.
CREATE TABLE drift_references (
    workload VARCHAR NOT NULL,     -- the kind of request
    created_at TIMESTAMP NOT NULL, -- when it was accepted: the end of that window
    start TIMESTAMP NOT NULL,      -- of that window
    actor VARCHAR NOT NULL,        -- who accepted it
    reason VARCHAR NOT NULL        -- why what was asked then is as usual
);

-- What the values of a sampled or labelled answer came to. Without a label it stays a week.
CREATE TABLE groundings (
    interaction_id VARCHAR NOT NULL, -- the answer
    workload VARCHAR NOT NULL,       -- the kind of request
    created_at TIMESTAMP NOT NULL,   -- when it was looked at
    score DOUBLE,                    -- how well the passages bear the answer out, 0 to 1; null: abstained
    alarm BOOLEAN,                   -- score < quality.grounding_threshold of then; null: abstained
    abstained VARCHAR,               -- why: no_words, no_context, language, code, no_values, numbering (it cites
                                     -- numbers that no passage has), too_long (a value is in nothing that is read of
                                     -- long texts), failed (an unexpected error, which is logged); null: it was judged
    method VARCHAR                   -- values; null: rules of older versions, whose findings count no more
);

-- What became of the conversations of a day, as the ledger has counted them.
CREATE TABLE ledger_outcomes (
    workload VARCHAR NOT NULL,     -- the kind of request
    day DATE NOT NULL,             -- of its answers
    outcome VARCHAR NOT NULL,      -- resolved, unresolved, escalated or unknown
    conversations BIGINT NOT NULL, -- how many
    PRIMARY KEY (workload, day, outcome)
);

-- All feedback so far on stored answers of a workload; retention takes nothing away.
CREATE TABLE feedback_totals (
    workload VARCHAR NOT NULL, -- the kind of request
    name VARCHAR NOT NULL,     -- one of the reserved names, or other
    source VARCHAR NOT NULL,   -- user, expert, judge or app
    total BIGINT NOT NULL,     -- how much
    PRIMARY KEY (workload, name, source)
);

-- How many answers a workload has in a minute, and when the first of them was. It follows `interactions` within a
-- minute.
CREATE TABLE answer_minutes (
    workload VARCHAR NOT NULL,      -- the kind of request
    demonstration BOOLEAN NOT NULL, -- they are nobody's traffic
    minute TIMESTAMP NOT NULL,      -- its beginning
    answers BIGINT NOT NULL,        -- so many
    first_at TIMESTAMP NOT NULL     -- time of the first one
);

-- How far `answer_minutes` follows the events: one row.
CREATE TABLE answer_minutes_position (
    last_batch BIGINT NOT NULL -- what this transaction and those before it stored is counted
);
INSERT INTO answer_minutes_position VALUES (-1);

-- A version that the targets of a workload should have. What was drained has none.
CREATE TABLE deployments (
    workload VARCHAR NOT NULL, -- the kind of request
    version VARCHAR,           -- null: the base model
    share DOUBLE NOT NULL,     -- of new conversations, 0 to 1; 0: loaded until it is drained
    since TIMESTAMP NOT NULL,  -- when it got this share
    served_at TIMESTAMP        -- when enough replicas of its targets first answered with it; null: not yet
);

-- A version that a webhook acknowledged.
CREATE TABLE webhook_models (
    url VARCHAR NOT NULL,              -- of the webhook
    model VARCHAR NOT NULL,            -- name on a server, workload@version
    aliases VARCHAR NOT NULL,          -- comma-separated
    acknowledged_at TIMESTAMP NOT NULL -- when it confirmed
);

-- A version that goes into service step by step, and how far it is.
CREATE TABLE rollouts (
    id VARCHAR NOT NULL,           -- unique; the experiment, by which conversations are assigned
    workload VARCHAR NOT NULL,     -- the kind of request
    version VARCHAR NOT NULL,      -- that goes into service
    previous_version VARCHAR,      -- that answers the rest; null: the base model
    created_at TIMESTAMP NOT NULL, -- when the first step began
    share DOUBLE NOT NULL,         -- of the traffic, that the version answers
    step_since TIMESTAMP NOT NULL, -- since when it is this share
    state VARCHAR NOT NULL,        -- canary, holdback, done, rolled_back or replaced
    ended_at TIMESTAMP             -- null: the traffic is split
);

-- A look at a canary beside the champion, with the decision: each for `retention.detail_days`, then the last of each
-- hour.
CREATE TABLE rollout_checks (
    id VARCHAR NOT NULL,           -- unique
    created_at TIMESTAMP NOT NULL, -- when it was made
    workload VARCHAR NOT NULL,     -- the kind of request
    experiment VARCHAR NOT NULL,   -- the row of rollouts
    version VARCHAR NOT NULL,      -- the canary
    previous_version VARCHAR,      -- null: the base model
    share DOUBLE NOT NULL,         -- of the traffic, that the canary answers
    step_since TIMESTAMP NOT NULL, -- when the step began
    answers BIGINT NOT NULL,       -- of the canary in this step
    verdict VARCHAR NOT NULL,      -- advance, hold or roll_back
    comparisons JSON NOT NULL,     -- list of {metric, source, bad_before, n_before, bad_after, n_after, worse,
                                   -- as_good}
    reasons JSON NOT NULL          -- list of sentences
);

-- A request for a person's approval of a version that the gate passed, or of a dataset. It stays.
CREATE TABLE approvals (
    id VARCHAR NOT NULL,             -- unique; of the message, too
    workload VARCHAR NOT NULL,       -- the kind of request
    version VARCHAR NOT NULL,        -- that the gate passed; or of the dataset
    champion VARCHAR,                -- the version that it was compared with; null: the base model
    run_id VARCHAR NOT NULL,         -- the run that made the version or the dataset
    requested_at TIMESTAMP NOT NULL, -- when the gate passed it, or the dataset was made
    expires_at TIMESTAMP NOT NULL,   -- nobody can approve it from then on
    state VARCHAR NOT NULL,          -- waiting, approved, refused, expired or superseded
    decided_at TIMESTAMP,            -- null: it waits
    actor VARCHAR,                   -- who approved or refused it; null: nobody did
    reason VARCHAR,                  -- why it was approved, refused or superseded; null: it waits, or has expired
    announced BOOLEAN NOT NULL,      -- the message of its state is on the model-events topic
    kind VARCHAR DEFAULT 'version'   -- version or dataset: what waits
);

-- What a version answered in shadow, redacted, until a day after its rollout has ended; columns as those of
-- `feedback`, which it comes as.
CREATE TABLE shadow_answers (
    id VARCHAR NOT NULL,             -- unique
    timestamp TIMESTAMP NOT NULL,    -- when it happened
    interaction_id VARCHAR NOT NULL, -- the champion's answer to the same question
    name VARCHAR NOT NULL,           -- shadow_answer
    value JSON NOT NULL,             -- {model, response, tool_calls, finish_reason, input_tokens, output_tokens,
                                     -- latency_seconds}
    source VARCHAR NOT NULL,         -- app
    user_id VARCHAR,                 -- keyed hash
    topic VARCHAR NOT NULL,          -- Kafka topic; `import:` and a hash for a file
    partition INTEGER NOT NULL,      -- of the topic
    "offset" BIGINT NOT NULL,        -- in the partition
    received_at TIMESTAMP NOT NULL,  -- when it was stored
    batch BIGINT                     -- number of the transaction that stored it
);

-- Of a conversation in shadow, how good the answers of champion and version are.
CREATE TABLE shadow_scores (
    experiment VARCHAR NOT NULL,     -- the row of rollouts
    interaction_id VARCHAR NOT NULL, -- the answer in production
    conversation VARCHAR NOT NULL,   -- of which this is the one answer that is compared
    scored_at TIMESTAMP NOT NULL,    -- when it was judged
    scorer VARCHAR NOT NULL,         -- alike, form, metric or judge; unknown: they differ, and nothing can judge them
                                     -- yet
    champion DOUBLE,                 -- 0 to 1; null: unknown
    candidate DOUBLE,                -- score of the candidate
    tokens BIGINT NOT NULL,          -- that a language model was paid for, to judge them
    booked BOOLEAN NOT NULL,         -- the ledger has them
    feedback_until TIMESTAMP         -- when the latest feedback came that was known; null: none, or unknown
);

-- How far a daemon of a cluster has the changes of the control tables: the greatest number.
CREATE TABLE control_positions (
    number BIGINT NOT NULL, -- of the changes that are here
    change VARCHAR          -- its id; null: of before ids were kept
);

-- How far a daemon of a cluster follows the segments: one row.
CREATE TABLE followed_segments (
    number BIGINT NOT NULL -- of the last segment that is stored; 0: none, or it reads Kafka itself
);
INSERT INTO followed_segments VALUES (0);

-- What a cluster keeps in object storage of a version, a dataset or a report.
CREATE TABLE artifacts (
    id VARCHAR NOT NULL,           -- version, dataset or report
    kind VARCHAR NOT NULL,         -- version, dataset or report
    name VARCHAR NOT NULL,         -- its path below the folder of its kind
    files JSON NOT NULL,           -- name to {key, bytes, sha256}; the key is below store.objects_url
    created_at TIMESTAMP NOT NULL, -- when it was stored
    removed_at TIMESTAMP           -- when it was removed, or others took its place; null: it counts. The row goes with
                                   -- the files
);

-- How a metric or a scorer judged pairs of answers of which people know whether they mean the same.
CREATE TABLE exams (
    workload VARCHAR NOT NULL,   -- the kind of request
    metric VARCHAR NOT NULL,     -- or the scorer
    source VARCHAR NOT NULL,     -- shipped: the pairs that come with retuned; workload: its own
    taken_at TIMESTAMP NOT NULL, -- when it was taken
    kind VARCHAR NOT NULL,       -- of the pairs: values, polarity, roles, code and so on
    language VARCHAR NOT NULL,   -- of the pairs, ISO 639-1; empty: unknown
    pairs BIGINT NOT NULL,       -- of answers that people compared
    judged BIGINT NOT NULL,      -- on the others it abstains
    agreed BIGINT NOT NULL,      -- judged as people did
    version VARCHAR              -- changes when the metric's verdicts may change
);

-- An event of a daemon in a cluster that is in the archive.
CREATE TABLE archived_ids (
    table_name VARCHAR NOT NULL, -- interactions or feedback
    hash UBIGINT NOT NULL        -- the lower half of the MD5 of the id
);

-- What the latest dataset of a workload decided about a row of feedback.
CREATE TABLE row_states (
    workload VARCHAR NOT NULL,        -- the kind of request
    feedback_id VARCHAR NOT NULL,     -- the row of feedback
    interaction_id VARCHAR NOT NULL,  -- the answer that the feedback is about
    user_id VARCHAR,                  -- keyed hash of who gave the feedback
    state VARCHAR NOT NULL,           -- taught, held_out, waiting, set_aside or overruled
    reason VARCHAR NOT NULL,          -- the rule or the person's action; empty: no rule objects
    detail VARCHAR NOT NULL,          -- for a person
    quarantined BOOLEAN NOT NULL,     -- left out as doubtful: the view quarantine
    other_feedback_id VARCHAR,        -- of another answer, of which nobody knows whether it means the same or which is
                                      -- right
    dataset_version VARCHAR NOT NULL, -- the row of datasets
    decided_at TIMESTAMP NOT NULL     -- when that dataset was made
);

-- What a person decided about a row, in place of the rules. It stays when a later decision supersedes it.
CREATE TABLE row_decisions (
    id VARCHAR NOT NULL,             -- unique
    workload VARCHAR NOT NULL,       -- the kind of request
    feedback_id VARCHAR NOT NULL,    -- the row of feedback
    interaction_id VARCHAR NOT NULL, -- the answer that the feedback is about
    user_id VARCHAR,                 -- keyed hash of who gave the feedback
    accepted BOOLEAN NOT NULL,       -- the feedback is a vote: the decision is about the answer that it accepts
    action VARCHAR NOT NULL,         -- keep, drop, pin, edit or release
    answer VARCHAR,                  -- of edit: what is taught instead
    reason VARCHAR NOT NULL,         -- why, redacted
    author VARCHAR NOT NULL,         -- who decided
    decided_at TIMESTAMP NOT NULL,   -- when
    superseded_at TIMESTAMP          -- when a later decision took its place; null: it is in force
);

-- What a person decided about an account. It stays when a later decision supersedes it.
CREATE TABLE account_decisions (
    id VARCHAR NOT NULL,           -- unique
    workload VARCHAR,              -- null: all workloads
    user_id VARCHAR NOT NULL,      -- keyed hash: the account
    action VARCHAR NOT NULL,       -- ban, trust or release
    reason VARCHAR NOT NULL,       -- why, redacted
    author VARCHAR NOT NULL,       -- who decided
    decided_at TIMESTAMP NOT NULL, -- when
    superseded_at TIMESTAMP        -- when a later decision took its place; null: it is in force
);

-- The verdict of the detector or the judge on a sampled or labelled answer. Without a label it stays a week.
CREATE TABLE detections (
    scorer VARCHAR NOT NULL,         -- nli (quality.detector) or llm (quality.judge_url)
    interaction_id VARCHAR NOT NULL, -- the answer
    workload VARCHAR NOT NULL,       -- the kind of request
    model VARCHAR NOT NULL,          -- folder of the detector, or name of the judge's model
    created_at TIMESTAMP NOT NULL,   -- when it was judged
    score DOUBLE,                    -- how well the passages support the answer, 0 to 1
    alarm BOOLEAN,                   -- it counts as invented
    abstained VARCHAR                -- why: failed, or interrupted (tried again after all others); null: it was judged
);

-- What an expert did with a label request in the console: claimed, skipped or answered it.
CREATE TABLE label_work (
    request_id VARCHAR NOT NULL, -- label_requests.id
    expert VARCHAR NOT NULL,     -- name of the principal
    state VARCHAR NOT NULL,      -- claimed, skipped or answered
    since TIMESTAMP NOT NULL,    -- since when it is in this state
    name VARCHAR,                -- of the feedback, once it is answered
    value JSON,                  -- the judgement
    sent BOOLEAN,                -- the answer, or the same one of another expert, was published as feedback; null: not
    comment VARCHAR,             -- of the expert, on the answer
    PRIMARY KEY (request_id, expert)
);

-- An approved answer of the memory of corrections. Those that left it stay for `retention.history_days`.
CREATE TABLE memory_entries (
    id VARCHAR NOT NULL,                              -- unique
    workload VARCHAR NOT NULL,                        -- the kind of request
    question_key VARCHAR NOT NULL,                    -- identity of the question, hex
    messages JSON NOT NULL USING COMPRESSION zstd,    -- the conversation, redacted
    question VARCHAR NOT NULL USING COMPRESSION zstd, -- its last user message
    context JSON USING COMPRESSION zstd,              -- list of retrieved passages
    tools JSON USING COMPRESSION zstd,                -- schemas that the model was offered
    answer VARCHAR NOT NULL USING COMPRESSION zstd,   -- the approved answer
    source VARCHAR NOT NULL,                          -- expert, users, or person: added by an operation
    author VARCHAR,                                   -- principal, or keyed hash of the account whose wording it is
    feedback_ids JSON NOT NULL,                       -- the feedback that it rests on
    since TIMESTAMP NOT NULL,                         -- time of the statement
    added_at TIMESTAMP NOT NULL,                      -- when it entered
    state VARCHAR NOT NULL,                           -- active, frozen, superseded, overruled, withdrawn, retired,
                                                      -- expired or removed
    reason VARCHAR NOT NULL,                          -- of the state, for a person; empty: it was added
    changed_by VARCHAR,                               -- who changed it last; null: retuned
    changed_at TIMESTAMP NOT NULL,                    -- when it got its state
    sequence BIGINT NOT NULL,                         -- grows with every change
    threshold DOUBLE,                                 -- least similarity of a related question; null: the same
                                                      -- question only
    retired_by VARCHAR                                -- the version that has learned it
);

-- Feedback that the memory has read, with the question that it is about.
CREATE TABLE memory_statements (
    workload VARCHAR NOT NULL,       -- the kind of request
    question_key VARCHAR NOT NULL,   -- identity of the question, hex
    feedback_id VARCHAR NOT NULL,    -- the feedback
    feedback_at TIMESTAMP NOT NULL,  -- when it was given
    interaction_id VARCHAR NOT NULL, -- the answer that it is about
    answered_at TIMESTAMP NOT NULL,  -- when that was given
    account VARCHAR,                 -- keyed hash of who gave the feedback
    correction BOOLEAN NOT NULL,     -- false: a verdict on the answer
    expert BOOLEAN DEFAULT false     -- an expert gave the feedback
);

-- How far the memory of a workload has read the events.
CREATE TABLE memory_positions (
    workload VARCHAR NOT NULL,  -- the kind of request
    last_batch BIGINT NOT NULL, -- feedback of this transaction and all before it is included
    decisions VARCHAR NOT NULL  -- fingerprint of what is applied: decisions of people, and the labels or the schema
                                -- that programs read
);

-- The epoch of the sequence numbers of `memory_entries`: one row.
CREATE TABLE memory_epoch (
    epoch VARCHAR NOT NULL -- a random id; another one voids earlier sequence numbers
);

-- An answer for which the memory had an entry. It follows `interactions` within minutes.
CREATE TABLE memory_uses (
    workload VARCHAR NOT NULL,       -- the kind of request
    interaction_id VARCHAR NOT NULL, -- the answer
    answered_at TIMESTAMP NOT NULL,  -- when it was given
    entry_id VARCHAR NOT NULL,       -- memory_entries.id
    held_out BOOLEAN NOT NULL,       -- the entry was not given, to measure its effect
    match VARCHAR,                   -- same or related
    similarity DOUBLE                -- of the two questions; 1: the same question
);

-- How far `memory_uses` follows the events: one row.
CREATE TABLE memory_uses_position (
    last_batch BIGINT NOT NULL -- answers of this transaction and all before it are included
);
INSERT INTO memory_uses_position VALUES (1);

-- A request to erase events, its state and, in the end, its receipt.
CREATE TABLE erasures (
    id VARCHAR NOT NULL,                        -- unique
    requested_at TIMESTAMP NOT NULL,            -- when it was requested
    requested_by VARCHAR,                       -- who requested it
    reason VARCHAR,                             -- as it was given
    selection JSON,                             -- what to erase; null once it is erased
    state VARCHAR NOT NULL DEFAULT 'requested', -- requested, deleting, rewriting, swapping, done
    found JSON,                                 -- where erased rows were found; an object
    error VARCHAR,                              -- why the last attempt ended early; null: it did not
    done_at TIMESTAMP,                          -- when nothing was left
    receipt JSON,                               -- what was erased, as one object
    PRIMARY KEY (id)
);

-- An erasure that is carried out in this file or, with its mark, one whose files here are rewritten; on a cluster
-- each daemon has its own.
CREATE TABLE erasures_applied (
    erasure_id VARCHAR NOT NULL, -- the row of erasures
    PRIMARY KEY (erasure_id)
);

-- A version that was trained on erased rows, or whose ancestor was.
CREATE TABLE erasure_versions (
    erasure_id VARCHAR NOT NULL,      -- the row of erasures
    workload VARCHAR NOT NULL,        -- the kind of request
    version VARCHAR NOT NULL,         -- the row of models
    dataset_version VARCHAR NOT NULL, -- the row of datasets
    rows BIGINT NOT NULL,             -- erased rows of its own dataset that it was trained on; 0: an ancestor was
    PRIMARY KEY (erasure_id, workload, version)
);

-- The keyed hash of an erased id, which keeps late copies out.
CREATE TABLE tombstones (
    erasure_id VARCHAR NOT NULL, -- the row of erasures
    kind VARCHAR NOT NULL,       -- interaction, feedback, conversation, user
    key_id VARCHAR NOT NULL,     -- the key of pseudonyms that the hash is derived from
    hash VARCHAR NOT NULL,       -- of what is kept out
    until TIMESTAMP,             -- for conversations and users: later events are stored
    since TIMESTAMP              -- for conversations: earlier events are stored; null: no event is
);

-- Who or what changed something, or read conversations: one row of a chain of hashes. Rows are only appended.
CREATE TABLE audit (
    sequence BIGINT NOT NULL,      -- 1, 2, 3, without gaps
    created_at TIMESTAMP NOT NULL, -- UTC, in whole milliseconds
    actor VARCHAR NOT NULL,        -- who acted
    actor_kind VARCHAR NOT NULL,   -- principal, rule or local
    action VARCHAR NOT NULL,       -- what was done
    outcome VARCHAR NOT NULL,      -- done, refused or failed
    workload VARCHAR,              -- the kind of request; null: none or all
    subject VARCHAR,               -- what it was done to: a version, an id, a table
    request_id VARCHAR,            -- shared by all rows of one request
    reason VARCHAR,                -- as the actor gave it
    details VARCHAR NOT NULL,      -- JSON; the hash is about this very text
    previous VARCHAR NOT NULL,     -- hash of the row before
    hash VARCHAR NOT NULL,         -- of this entry and the one before it
    PRIMARY KEY (sequence)
);

-- A legal hold. It stays when it is released.
CREATE TABLE holds (
    id VARCHAR NOT NULL,          -- unique
    workload VARCHAR,             -- null: all
    user_id VARCHAR,              -- pseudonym; null: of all users
    reason VARCHAR NOT NULL,      -- why it was placed
    placed_by VARCHAR NOT NULL,   -- who placed it
    placed_at TIMESTAMP NOT NULL, -- when it was placed
    released_by VARCHAR,          -- who released it; null: in force
    released_at TIMESTAMP,        -- null: in force
    release_reason VARCHAR,       -- why it was released
    PRIMARY KEY (id)
);

-- A decision to keep a version that learned erased rows in service until a time.
CREATE TABLE erased_kept (
    workload VARCHAR NOT NULL,     -- the kind of request
    created_at TIMESTAMP NOT NULL, -- when it was decided
    until TIMESTAMP NOT NULL,      -- from then on the settings of the workload apply again
    actor VARCHAR NOT NULL,        -- who decided
    reason VARCHAR NOT NULL        -- as the actor gave it
);

-- A dataset that had erased rows. Versions that are trained on it learned them.
CREATE TABLE erasure_datasets (
    erasure_id VARCHAR NOT NULL,      -- the row of erasures
    dataset_version VARCHAR NOT NULL, -- the row of datasets
    rows BIGINT NOT NULL,             -- erased rows that a training on it learns
    PRIMARY KEY (erasure_id, dataset_version)
);

-- All answers so far for which the memory had an entry; retention takes nothing away.
CREATE TABLE memory_totals (
    workload VARCHAR NOT NULL, -- the kind of request
    helped BIGINT NOT NULL,    -- with an entry's help
    held_out BIGINT NOT NULL,  -- without it, to measure its effect
    PRIMARY KEY (workload)
);

CREATE MACRO version_of(of_workload, of_model) AS CASE
    WHEN starts_with(of_model, of_workload || '@') THEN of_model[length(of_workload) + 2:]
    ELSE 'base'
END;

-- What a piece of feedback states about the whole answer. True: it approves of it; false: it is against it; null: neither.
CREATE MACRO approves(of_name, of_value) AS CASE
    WHEN of_name = 'helpful' THEN TRY_CAST(of_value AS BOOLEAN)
    WHEN of_name = 'hallucination' AND TRY_CAST(of_value AS BOOLEAN) THEN false
    WHEN of_name = 'rating' AND TRY_CAST(of_value AS DOUBLE) >= 0.8 THEN true
    WHEN of_name = 'rating' AND TRY_CAST(of_value AS DOUBLE) < 0.5 THEN false
END;

-- Whether an account is banned now: who gave a piece of feedback or, where a user's names nobody, who asked. A decision for one
-- workload overrides one for all.
CREATE MACRO is_banned(of_workload, of_source, of_user, of_asker) AS coalesce(
    CASE WHEN of_source = 'user' THEN coalesce(of_user, of_asker) ELSE of_user END IN (
        SELECT user_id FROM account_decisions
        WHERE (workload = of_workload OR workload IS NULL) AND superseded_at IS NULL AND action <> 'release'
        GROUP BY user_id
        HAVING arg_max(action, (workload IS NOT NULL, decided_at)) = 'ban'
    ),
    false
);

-- The text of a message, which is a string or a list of parts; null without any.
CREATE MACRO message_text(message) AS CASE json_type(message, '$.content')
    WHEN 'ARRAY' THEN array_to_string(
        nullif(list_filter(
            list_transform(
                list_filter(
                    (message -> 'content')::JSON[], lambda part: (part ->> 'type') IN ('text', 'input_text', 'output_text')
                ),
                lambda part: part ->> 'text'
            ),
            lambda text: text IS NOT NULL
        ), []),
        E'\n'
    )
    ELSE message ->> 'content'
END;

-- The last message of the user; null if there is none.
CREATE MACRO last_question(messages) AS message_text(
    list_last(list_filter(messages::JSON[], lambda message: message ->> 'role' = 'user'))
);

-- The interactions without demonstrations (imported examples that no model answered).
CREATE VIEW traffic AS SELECT * EXCLUDE (batch) FROM interactions WHERE model <> 'demonstration';

-- Who called an answer helpful or invented. A correction counts as a vote that the answer was not helpful, unless the
-- same account said otherwise.
CREATE VIEW votes AS
SELECT id, timestamp, interaction_id, name, value::VARCHAR = 'true' AS value, source, user_id, received_at
FROM feedback
WHERE name IN ('helpful', 'hallucination') AND value::VARCHAR IN ('true', 'false')
UNION ALL
SELECT id, timestamp, interaction_id, 'helpful', false, source, user_id, received_at
FROM feedback AS corrections
WHERE name = 'correction' AND NOT EXISTS (
    FROM feedback
    WHERE name = 'helpful' AND value::VARCHAR IN ('true', 'false')
      AND interaction_id = corrections.interaction_id AND source = corrections.source
      AND user_id IS NOT DISTINCT FROM corrections.user_id
);

-- A piece of feedback that the latest dataset of its workload leaves out as doubtful.
CREATE VIEW quarantine AS
SELECT workload, feedback_id, interaction_id, user_id, reason, detail, dataset_version, decided_at AS created_at
FROM row_states
WHERE quarantined;

-- The answers with passages that were looked at, and whether any scorer alarms.
CREATE VIEW grounding_strata AS
SELECT g.workload, g.interaction_id, coalesce(g.alarm, false) OR coalesce(d.alarm, false) AS alarm
FROM groundings g
LEFT JOIN (SELECT workload, interaction_id, bool_or(alarm) AS alarm FROM detections GROUP BY ALL) d
    USING (workload, interaction_id)
WHERE g.method = 'values' AND (g.abstained IS NULL OR g.abstained NOT IN ('no_words', 'no_context'));

-- The answers of the model in service that may still be drawn for calibration.
CREATE VIEW calibration_candidates AS
SELECT s.workload, s.interaction_id, s.alarm
FROM grounding_strata s
JOIN traffic t ON t.id = s.interaction_id AND t.workload = s.workload
LEFT JOIN aliases a ON a.workload = s.workload AND a.alias = 'champion'
WHERE t.timestamp >= coalesce(a.created_at, TIMESTAMP '1970-01-01')
    AND s.interaction_id NOT IN (
        SELECT interaction_id FROM label_requests WHERE workload = s.workload AND reason = 'calibration'
    );

-- A version that learned erased rows, itself or through a version before it.
CREATE VIEW erased_versions AS
WITH RECURSIVE learned AS (
    (
        SELECT m.workload, m.version, x.requested_at AS since
        FROM erasure_datasets e
        JOIN erasures x ON x.id = e.erasure_id
        JOIN models m ON m.dataset_version = e.dataset_version
        UNION
        SELECT m.workload, m.version, x.requested_at
        FROM erasure_versions e
        JOIN erasures x ON x.id = e.erasure_id
        JOIN models m ON m.workload = e.workload
            AND (m.version = e.version OR e.rows > 0 AND m.dataset_version = e.dataset_version)
    )
    UNION
    SELECT m.workload, m.version, l.since
    FROM models m JOIN learned l ON l.workload = m.workload AND l.version = m.parent_version
)
SELECT workload, version, min(since) AS since, max(since) AS latest FROM learned GROUP BY workload, version;
