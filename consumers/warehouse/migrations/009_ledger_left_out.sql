-- What events reported and the ledger did not book, as more than one event may: one row for each booking and item.

CREATE TABLE ledger_left_out (
    created_at TIMESTAMP NOT NULL,
    workload   VARCHAR   NOT NULL,
    item       VARCHAR   NOT NULL,                  -- of the ledger
    reported   BIGINT    NOT NULL                   -- numbers beyond the limit
);
