-- How far a daemon of a cluster has the changes of the control tables: the greatest number. Rows are only added, since of
-- two transactions that change one row at once the second would fail.

CREATE TABLE control_positions (
    number BIGINT NOT NULL  -- of the changes that are here
);
