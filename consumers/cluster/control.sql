-- name: report
-- Records that this daemon runs, and returns the epoch and the instance of the leader. The lock makes reports and changes of
-- the leader wait for each other: either a new leader sees this report, or this daemon sees the new leader.
WITH report AS (
    INSERT INTO retuned.daemons (instance, name, url, backend, beat_at)
    VALUES (
        %(instance)s, %(name)s,
        -- If no address is given, the one that the database sees; a local socket has none.
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
-- Daemons that reported lately, except those replaced by a later one of the same name.
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
-- All old changes except the last one.
WITH forgotten AS (
    DELETE FROM retuned.changes USING retuned.last_change AS last
    WHERE changed_at < now() - INTERVAL '30 days' AND changes.number < last.number RETURNING changes.number
)
SELECT count(*) FROM forgotten;

-- name: leave_entry
INSERT INTO retuned.audit_entries (id, entry) VALUES (%(id)s, %(entry)s::JSON) ON CONFLICT DO NOTHING RETURNING id;

-- name: erasure_requests
SELECT id, request FROM retuned.erasure_requests ORDER BY created_at, id LIMIT 1000;

-- name: take_erasure_requests
DELETE FROM retuned.erasure_requests WHERE id = ANY(%(ids)s) RETURNING id;

-- name: entries_left
SELECT id, entry FROM retuned.audit_entries ORDER BY created_at, id LIMIT 1000;

-- name: take_entries
DELETE FROM retuned.audit_entries WHERE id = ANY(%(ids)s) RETURNING id;
