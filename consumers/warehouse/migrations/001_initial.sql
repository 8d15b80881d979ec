-- All timestamps are UTC. Texts are zstd: half the size, and checkpoints are twice as fast, for slower full scans.

CREATE TABLE interactions (
    id                          VARCHAR   NOT NULL,
    timestamp                   TIMESTAMP NOT NULL,
    workload                    VARCHAR   NOT NULL,
    model                       VARCHAR   NOT NULL,
    messages                    JSON      NOT NULL USING COMPRESSION zstd,
    response                    VARCHAR   NOT NULL USING COMPRESSION zstd,
    context                     JSON USING COMPRESSION zstd, -- list of retrieved passages
    conversation_id             VARCHAR,
    user_id                     VARCHAR,            -- keyed hash
    latency_seconds             DOUBLE,
    time_to_first_token_seconds DOUBLE,
    input_tokens                BIGINT,
    output_tokens               BIGINT,
    cost                        DOUBLE,
    finish_reason               VARCHAR,
    attributes                  JSON USING COMPRESSION zstd,
    topic                       VARCHAR   NOT NULL,
    partition                   INTEGER   NOT NULL,
    "offset"                    BIGINT    NOT NULL,
    received_at                 TIMESTAMP NOT NULL
);

CREATE TABLE feedback (
    id             VARCHAR   NOT NULL,
    timestamp      TIMESTAMP NOT NULL,
    interaction_id VARCHAR   NOT NULL,              -- may come before its interaction
    name           VARCHAR   NOT NULL,
    value          JSON      NOT NULL,              -- boolean, number or string
    source         VARCHAR   NOT NULL,              -- user, expert, judge or app
    user_id        VARCHAR,                         -- keyed hash
    topic          VARCHAR   NOT NULL,
    partition      INTEGER   NOT NULL,
    "offset"       BIGINT    NOT NULL,
    received_at    TIMESTAMP NOT NULL
);

CREATE TABLE dead_letters (
    topic       VARCHAR   NOT NULL,
    partition   INTEGER   NOT NULL,
    "offset"    BIGINT    NOT NULL,
    reason      VARCHAR   NOT NULL,                 -- a code
    detail      VARCHAR   NOT NULL,                 -- what was wrong, for a person
    payload     VARCHAR USING COMPRESSION zstd,     -- redacted
    received_at TIMESTAMP NOT NULL
);

CREATE TABLE offsets (
    topic       VARCHAR NOT NULL,
    partition   INTEGER NOT NULL,
    next_offset BIGINT  NOT NULL,
    PRIMARY KEY (topic, partition)                  -- two writers of a first offset must collide
);

CREATE TABLE datasets (
    version    VARCHAR   NOT NULL,                  -- hash of its content
    workload   VARCHAR   NOT NULL,
    created_at TIMESTAMP NOT NULL,
    path       VARCHAR   NOT NULL,
    train      BIGINT    NOT NULL,                  -- rows of each split
    validation BIGINT    NOT NULL,
    holdout    BIGINT    NOT NULL,
    replay     BIGINT    NOT NULL,                  -- rows of train that repeat an older dataset
    card       JSON      NOT NULL
);

CREATE TABLE dataset_rows (
    dataset_version VARCHAR NOT NULL,
    row_id          VARCHAR NOT NULL,               -- hash of prompt and completion
    split           VARCHAR NOT NULL,               -- train, validation, holdout, regression, thumbs or traffic
    prompt_hash     VARCHAR NOT NULL,               -- of the normalised prompt
    interaction_id  VARCHAR NOT NULL,
    feedback_id     VARCHAR NOT NULL                -- the correction or acceptance it came from; empty in traffic
);

CREATE TABLE runs (
    id              VARCHAR   NOT NULL,
    workload        VARCHAR   NOT NULL,
    reasons         JSON      NOT NULL,             -- why it was started
    state           VARCHAR   NOT NULL,             -- waiting, running, interrupted, succeeded, refused, failed or cancelled
    started_at      TIMESTAMP NOT NULL,             -- while it waits: when it was put in line
    finished_at     TIMESTAMP,
    dataset_version VARCHAR,
    parent_version  VARCHAR,
    version         VARCHAR,                        -- the candidate
    train_seconds   DOUBLE,
    evaluate_seconds DOUBLE,
    detail          JSON,
    error           VARCHAR
);

CREATE TABLE evaluations (
    run_id          VARCHAR NOT NULL,
    workload        VARCHAR NOT NULL,
    dataset_version VARCHAR NOT NULL,
    model           VARCHAR NOT NULL,               -- base, a version, or logged: what production answered
    split           VARCHAR NOT NULL,               -- holdout, slices (further rows of it, for small slices alone), regression, traffic, general or fold: what the candidate learned, answered by a model that did not
    row_id          VARCHAR NOT NULL,
    score           DOUBLE  NOT NULL,               -- of the metric, 0 to 1; null: it abstains
    token_f1        DOUBLE  NOT NULL,
    loss            DOUBLE  NOT NULL,               -- of the completion, nats per token; null for logged answers
    hallucinated    BOOLEAN,                        -- null: cannot be told
    latency_seconds DOUBLE  NOT NULL,
    output          VARCHAR NOT NULL
);

CREATE TABLE decisions (
    id       VARCHAR   NOT NULL,
    created_at       TIMESTAMP NOT NULL,
    workload VARCHAR   NOT NULL,
    kind     VARCHAR   NOT NULL,                    -- retrain or gate
    outcome  BOOLEAN   NOT NULL,
    reasons  JSON      NOT NULL,                    -- list of sentences
    figures  JSON      NOT NULL,
    run_id   VARCHAR
);

CREATE TABLE models (
    version         VARCHAR   NOT NULL,
    workload        VARCHAR   NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    path            VARCHAR   NOT NULL,
    base_model      VARCHAR   NOT NULL,
    base_hash       VARCHAR   NOT NULL,
    parent_version  VARCHAR,
    dataset_version VARCHAR   NOT NULL,
    run_id          VARCHAR   NOT NULL,
    manifest        JSON      NOT NULL
);

CREATE TABLE aliases (
    workload VARCHAR   NOT NULL,
    alias    VARCHAR   NOT NULL,                    -- champion or previous
    version  VARCHAR,                               -- null: the base model
    created_at       TIMESTAMP NOT NULL
);

CREATE TABLE promotions (
    id               VARCHAR   NOT NULL,
    created_at               TIMESTAMP NOT NULL,
    workload         VARCHAR   NOT NULL,
    event            VARCHAR   NOT NULL,            -- promoted or rolled_back
    version          VARCHAR,                       -- null: the base model
    previous_version VARCHAR,
    actor            VARCHAR   NOT NULL,            -- gate, operator or watch
    reason           VARCHAR   NOT NULL,
    announced        BOOLEAN   NOT NULL             -- the message is on the model-events topic
);

CREATE TABLE drift_checks (
    id             VARCHAR   NOT NULL,
    created_at             TIMESTAMP NOT NULL,
    workload       VARCHAR   NOT NULL,
    drifted        BOOLEAN,                         -- null: too few rows to tell
    severity       DOUBLE,                          -- how far what moved furthest did: a share of events
    features       JSON      NOT NULL,              -- list of {feature, method, threshold, value, drifted, reference, current, distance, example}
    reference_rows BIGINT    NOT NULL,
    current_rows   BIGINT    NOT NULL,
    report         VARCHAR,                         -- path of the JSON report; the page is beside it
    detail         VARCHAR   NOT NULL
);

CREATE TABLE quality (
    created_at       TIMESTAMP NOT NULL,
    workload VARCHAR   NOT NULL,
    model    VARCHAR   NOT NULL,                    -- '*': all models of the window
    metric   VARCHAR   NOT NULL,
    source   VARCHAR   NOT NULL,                    -- user, expert, judge, app, llm, nli, grounding, grounding_calibrated or features
    value    DOUBLE    NOT NULL,
    low      DOUBLE    NOT NULL,                    -- 95% interval
    high     DOUBLE    NOT NULL,
    n        BIGINT    NOT NULL
);

CREATE TABLE ledger (
    id        VARCHAR   NOT NULL,
    created_at        TIMESTAMP NOT NULL,
    workload  VARCHAR   NOT NULL,
    kind      VARCHAR   NOT NULL,                   -- gain or cost
    item      VARCHAR   NOT NULL,                   -- what was gained, or paid for
    quantity  DOUBLE    NOT NULL,
    unit      VARCHAR   NOT NULL,
    rate      DOUBLE    NOT NULL,                   -- per unit
    amount    DOUBLE    NOT NULL,                   -- quantity × rate; below zero: it corrects another, or is a loss
    reference VARCHAR   NOT NULL                    -- what it was counted from
);

-- Events below next_offset are in the ledger, and so is the fixed cost up to booked_at.
CREATE TABLE ledger_progress (
    topic       VARCHAR   NOT NULL,
    partition   INTEGER   NOT NULL,
    next_offset BIGINT    NOT NULL,
    booked_at   TIMESTAMP NOT NULL,
    PRIMARY KEY (topic, partition)                  -- two bookings at once conflict, and one is rolled back
);
