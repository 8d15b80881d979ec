-- name: report
-- Notes that this daemon runs; returns the epoch and the instance of the leader. One that is just becoming the leader is
-- waited for, and waits for this: either it sees this report, or this one sees it.
WITH report AS (
    INSERT INTO retuned.daemons (instance, name, url, backend, beat_at)
    VALUES (
        %(instance)s, %(name)s,
        -- The address that the database sees, where none is given; none is seen by a socket of its own machine.
        replace(%(url)s, '*', CASE
            WHEN family(inet_client_addr()) = 6 THEN '[' || host(inet_client_addr()) || ']'
            ELSE coalesce(host(inet_client_addr()), '127.0.0.1')
        END),
        pg_backend_pid(), now()
    )
    ON CONFLICT (instance) DO UPDATE SET url = excluded.url, backend = excluded.backend, beat_at = excluded.beat_at
)
SELECT epoch, instance FROM retuned.leader FOR KEY SHARE;

-- name: lead
SELECT retuned.lead(%(instance)s, %(seconds)s);

-- name: lead_no_more
UPDATE retuned.leader SET instance = NULL WHERE epoch = %(epoch)s RETURNING epoch;

-- name: forget_daemons
DELETE FROM retuned.daemons WHERE beat_at < now() - INTERVAL '1 day' RETURNING instance;

-- name: leave
DELETE FROM retuned.daemons WHERE instance = %(instance)s RETURNING name;

-- name: daemons
-- Those that were heard of lately, without what ended before another one of its name began.
SELECT name, daemons.instance IS NOT DISTINCT FROM leader.instance AS leads, extract(epoch FROM now() - beat_at)::FLOAT AS seconds,
       daemons.instance = %(instance)s AS this
FROM retuned.daemons CROSS JOIN retuned.leader
WHERE beat_at > now() - INTERVAL '1 minute' AND NOT EXISTS (
    SELECT FROM retuned.daemons AS later
    WHERE later.name = daemons.name AND later.beat_at > daemons.beat_at + INTERVAL '10 seconds'
)
ORDER BY name, seconds;

-- name: leader
SELECT name, url FROM retuned.daemons JOIN retuned.leader USING (instance);

-- name: known
SELECT to_regclass('retuned.leader') IS NOT NULL;

-- name: last_segment
SELECT number FROM retuned.last_segment;

-- name: change
SELECT retuned.change_control(
    %(change)s, %(epoch)s, %(number)s, %(after)s, %(schema)s, %(tables)s::TEXT[], %(keys)s::TEXT[], %(rows)s::TEXT[]
);

-- name: last_change
SELECT number, change, schema_version, deleted_until FROM retuned.last_change;

-- name: change_of
SELECT change FROM retuned.changes WHERE number = %(number)s;

-- name: changes
SELECT table_name, key, row FROM retuned.control WHERE number > %(number)s ORDER BY table_name, key;

-- name: forget_deleted
WITH forgotten AS (
    DELETE FROM retuned.control WHERE row IS NULL AND changed_at < now() - INTERVAL '30 days' RETURNING number
), latest AS (
    SELECT max(number) AS number FROM forgotten
)
UPDATE retuned.last_change SET deleted_until = latest.number FROM latest
WHERE latest.number > deleted_until RETURNING deleted_until;

-- name: forget_changes
-- But for the last one.
WITH forgotten AS (
    DELETE FROM retuned.changes USING retuned.last_change AS last
    WHERE changed_at < now() - INTERVAL '30 days' AND changes.number < last.number RETURNING changes.number
)
SELECT count(*) FROM forgotten;
