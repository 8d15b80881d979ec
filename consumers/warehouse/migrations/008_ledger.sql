-- Which version an entry is of, under which change of the champion, and when that was; and how earnings scatter.

ALTER TABLE ledger ADD COLUMN version VARCHAR;              -- null: the base model, or another that is none of ours
ALTER TABLE ledger ADD COLUMN promotion VARCHAR;            -- the row of promotions in force; null: before the first
ALTER TABLE ledger ADD COLUMN period_start TIMESTAMP;       -- first and last of what was counted; its day's rate holds
ALTER TABLE ledger ADD COLUMN period_end TIMESTAMP;

-- Sums over conversations of what each earned and cost, with the squares and products that intervals need.
CREATE TABLE ledger_moments (
    workload             VARCHAR   NOT NULL,
    version              VARCHAR   NOT NULL,                -- '': none of ours
    promotion            VARCHAR   NOT NULL,                -- '': before the first
    hour                 TIMESTAMP NOT NULL,                -- in which the conversation began
    conversations        BIGINT    NOT NULL,
    interactions         BIGINT    NOT NULL,
    gain                 DOUBLE    NOT NULL,
    cost                 DOUBLE    NOT NULL,
    interactions_squared DOUBLE    NOT NULL,
    gain_squared         DOUBLE    NOT NULL,
    cost_squared         DOUBLE    NOT NULL,
    gain_interactions    DOUBLE    NOT NULL,
    gain_cost            DOUBLE    NOT NULL,
    PRIMARY KEY (workload, version, promotion, hour)
);
