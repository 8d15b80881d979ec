-- name: days_to_roll_up
SELECT DISTINCT booked_on
FROM (
    SELECT created_at::DATE AS booked_on FROM ledger
    WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND created_at < $before AND item NOT IN ('training', 'judging') AND json_valid(reference)
        AND abs(amount) < 1e150 AND abs(quantity) < 1e150
    GROUP BY workload, kind, item, unit, rate, version, promotion, booked_on, period_start::DATE
    HAVING count(*) > 1
)
ORDER BY booked_on

-- name: rolled_entries
-- Sums entries of the same day of booking and the same day of events. Entries of training and judging stay, as they name their
-- run; so do amounts too large to sum.
CREATE OR REPLACE TEMP TABLE rolled_entries AS
SELECT list(rowid) AS entries, max(created_at) AS created_at, workload, kind, item, fsum(quantity) AS quantity, unit, rate,
       fsum(amount) AS amount,
       json_object(
           'until', max(created_at),
           'answers', sum(coalesce(try_cast(reference ->> '$.answers' AS BIGINT), 0)),
           'entries', sum(coalesce(try_cast(reference ->> '$.entries' AS BIGINT), 1))
       )::VARCHAR AS reference,
       version, promotion, min(period_start) AS period_start, max(period_end) AS period_end
FROM ledger
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND created_at >= $day AND created_at < $day + INTERVAL 1 DAY AND item NOT IN ('training', 'judging') AND json_valid(reference)
    AND abs(amount) < 1e150 AND abs(quantity) < 1e150
GROUP BY workload, kind, item, unit, rate, version, promotion, ledger.period_start::DATE
HAVING count(*) > 1

-- name: delete_rolled_entries
DELETE FROM ledger WHERE rowid IN (SELECT unnest(entries) FROM rolled_entries)

-- name: insert_rolled_entries
INSERT INTO ledger BY NAME SELECT uuid()::VARCHAR AS id, * EXCLUDE (entries) FROM rolled_entries

-- name: rolled_left_out
CREATE OR REPLACE TEMP TABLE rolled_left_out AS
SELECT list(rowid) AS entries, max(created_at) AS created_at, workload, item, sum(reported)::BIGINT AS reported
FROM ledger_left_out
WHERE workload IN (SELECT unnest($workloads::VARCHAR[])) AND created_at < $before
GROUP BY workload, item, created_at::DATE
HAVING count(*) > 1

-- name: delete_rolled_left_out
DELETE FROM ledger_left_out WHERE rowid IN (SELECT unnest(entries) FROM rolled_left_out)

-- name: insert_rolled_left_out
INSERT INTO ledger_left_out BY NAME SELECT * EXCLUDE (entries) FROM rolled_left_out

-- name: rolled_moments
-- Adds all hours of a day to its first hour.
CREATE OR REPLACE TEMP TABLE added_moments AS
SELECT list(rowid) AS entries, workload, version, promotion, date_trunc('day', ledger_moments.hour) AS hour,
       sum(conversations) AS conversations, sum(interactions) AS interactions, fsum(gain) AS gain, fsum(cost) AS cost,
       fsum(gain_squared) AS gain_squared, fsum(cost_squared) AS cost_squared, fsum(gain_cost) AS gain_cost
FROM ledger_moments
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND ledger_moments.hour < $before AND ledger_moments.hour <> date_trunc('day', ledger_moments.hour)
    AND gain_squared < 1e300 AND cost_squared < 1e300
GROUP BY ALL

-- name: delete_rolled_moments
DELETE FROM ledger_moments WHERE rowid IN (SELECT unnest(entries) FROM added_moments)
