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
CREATE OR REPLACE TEMP TABLE rolled_moments AS
SELECT moments.rowid AS entry, * FROM ledger_moments AS moments
WHERE workload IN (SELECT unnest($workloads::VARCHAR[]))
    AND hour < $before AND hour <> date_trunc('day', hour) AND gain_squared < 1e300 AND cost_squared < 1e300

-- name: delete_rolled_moments
DELETE FROM ledger_moments WHERE rowid IN (SELECT entry FROM rolled_moments)

-- name: insert_rolled_moments
INSERT INTO ledger_moments
SELECT workload, version, promotion, date_trunc('day', hour), sum(conversations), sum(interactions), fsum(gain), fsum(cost),
       fsum(gain_squared), fsum(cost_squared), fsum(gain_cost)
FROM rolled_moments
GROUP BY ALL
ON CONFLICT DO UPDATE SET
    conversations = conversations + excluded.conversations,
    interactions = interactions + excluded.interactions,
    gain = gain + excluded.gain,
    cost = cost + excluded.cost,
    gain_squared = gain_squared + excluded.gain_squared,
    cost_squared = cost_squared + excluded.cost_squared,
    gain_cost = gain_cost + excluded.gain_cost
