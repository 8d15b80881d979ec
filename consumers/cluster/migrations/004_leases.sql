-- Leading is a lease: the leader has it until it has not reported for some seconds, or leaves.

-- The epoch under which a daemon leads from now on; null: another one does. A leader that left has no row in `daemons`.
-- Its report and this wait for each other, so that its lease cannot be renewed and taken over at once. Called as one
-- statement outside of any transaction, like change_control.
CREATE FUNCTION retuned.lead(this_instance TEXT, lease_seconds DOUBLE PRECISION) RETURNS BIGINT
LANGUAGE plpgsql AS $$
DECLARE
    new_epoch BIGINT;
BEGIN
    IF retuned.has_leader(lease_seconds) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM retuned.leader FOR UPDATE;
    IF retuned.has_leader(lease_seconds) THEN
        RETURN NULL;
    END IF;
    UPDATE retuned.leader SET epoch = epoch + 1, instance = this_instance RETURNING epoch INTO new_epoch;
    -- Its lease begins now, however long ago it reported.
    UPDATE retuned.daemons SET beat_at = now() WHERE instance = this_instance;
    RETURN new_epoch;
END $$;

-- Each statement of a VOLATILE function sees what was committed before it.
CREATE FUNCTION retuned.has_leader(lease_seconds DOUBLE PRECISION) RETURNS BOOLEAN LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (
        SELECT FROM retuned.leader JOIN retuned.daemons USING (instance)
        WHERE beat_at > now() - lease_seconds * INTERVAL '1 second'
    );
$$;
