-- How a metric or a scorer judged pairs of answers of which people know whether they mean the same.

CREATE TABLE exams (
    workload VARCHAR   NOT NULL,
    metric   VARCHAR   NOT NULL,  -- or the scorer
    source   VARCHAR   NOT NULL,  -- shipped: the pairs that come with retuned; workload: its own
    taken_at TIMESTAMP NOT NULL,
    kind     VARCHAR   NOT NULL,  -- of the pairs: values, polarity, roles, code and so on
    language VARCHAR   NOT NULL,  -- of the pairs, ISO 639-1; empty: unknown
    pairs    BIGINT    NOT NULL,
    judged   BIGINT    NOT NULL,  -- on the others it abstains
    agreed   BIGINT    NOT NULL   -- judged as people did
);
