-- The numbers of placeholders, such as that of <EMAIL_1>, within conversations: which value has which. Ids and values are
-- keyed hashes; whoever has the database alone can compute none of them.

CREATE TABLE retuned.placeholders (
    scope   BYTEA   NOT NULL,  -- the conversation, or the event that is in none
    value   BYTEA   NOT NULL,  -- what the placeholder stands for; empty: the row has the last number of its kind
    kind    TEXT    NOT NULL,
    number  BIGINT  NOT NULL,
    used_on DATE    NOT NULL,  -- of UTC; for the last number of a kind that of the value that was used last
    PRIMARY KEY (scope, value, kind)
);
CREATE INDEX placeholders_by_day ON retuned.placeholders (used_on);

-- Of interactions with numbers, so that feedback on them has the same ones.
CREATE TABLE retuned.numbered_events (
    event   BYTEA PRIMARY KEY,
    scope   BYTEA NOT NULL,
    used_on DATE  NOT NULL
);
CREATE INDEX numbered_events_by_day ON retuned.numbered_events (used_on);

-- The number of each value in its scope, of those that had none too: new ones count up in the order in which they are
-- asked for. A number that is given once is never given to another value of its kind and scope: whoever gives numbers
-- there holds the row of the last one until the commit. Numbers are given again to the same values, whoever asks, so it
-- does not matter what becomes of the batch for which they were given, nor in how many partitions a conversation is.
-- Called as one statement outside of any transaction, like record_segment.
--
-- scopes, kinds, vals and taken are rows, each once. With an empty value a row keeps the numbers up to `taken` from being
-- given.
CREATE FUNCTION retuned.number_placeholders(
    events BYTEA[], event_scopes BYTEA[], scopes BYTEA[], vals BYTEA[], kinds TEXT[], taken BIGINT[]
) RETURNS TABLE (place BIGINT, given BIGINT) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    today            DATE := (now() AT TIME ZONE 'UTC')::DATE;
    something_is_new BOOLEAN;
BEGIN
    -- Each in one order, so that two that ask for the same wait for each other at most once.
    INSERT INTO retuned.numbered_events AS known (event, scope, used_on)
    SELECT event, scope, today FROM unnest(events, event_scopes) AS asked(event, scope) ORDER BY event
    ON CONFLICT (event) DO UPDATE SET used_on = excluded.used_on WHERE known.used_on < excluded.used_on;

    INSERT INTO retuned.placeholders AS last (scope, value, kind, number, used_on)
    SELECT scope, '', kind, max(taken), today
    FROM unnest(scopes, vals, kinds, taken) AS asked(scope, value, kind, taken)
    LEFT JOIN retuned.placeholders AS known USING (scope, value, kind)
    WHERE known.number IS NULL OR known.number < taken OR known.used_on < today
    GROUP BY scope, kind ORDER BY scope, kind
    ON CONFLICT (scope, value, kind)
    DO UPDATE SET number = greatest(last.number, excluded.number), used_on = excluded.used_on;
    something_is_new := FOUND;

    RETURN QUERY
    SELECT place, number
    FROM unnest(scopes, vals, kinds) WITH ORDINALITY AS asked(scope, value, kind, place)
    JOIN retuned.placeholders AS known USING (scope, value, kind)
    WHERE value <> '';
    IF NOT something_is_new THEN
        RETURN;
    END IF;

    UPDATE retuned.placeholders AS known SET used_on = today
    FROM unnest(scopes, vals, kinds) AS asked(scope, value, kind)
    WHERE known.scope = asked.scope AND known.value = asked.value AND known.kind = asked.kind AND known.used_on < today;

    RETURN QUERY
    WITH missing AS (
        SELECT asked.*
        FROM unnest(scopes, vals, kinds) WITH ORDINALITY AS asked(scope, value, kind, place)
        LEFT JOIN retuned.placeholders AS known USING (scope, value, kind)
        WHERE value <> '' AND known.number IS NULL
    ), numbered AS (
        SELECT
            place, scope, missing.value, kind,
            last.number + row_number() OVER (PARTITION BY scope, kind ORDER BY place) AS number
        FROM missing JOIN retuned.placeholders AS last USING (scope, kind)
        WHERE last.value = ''
    ), stored AS (
        INSERT INTO retuned.placeholders (scope, value, kind, number, used_on)
        SELECT scope, value, kind, number, today FROM numbered
    ), moved AS (
        UPDATE retuned.placeholders AS last SET number = highest.number
        FROM (SELECT scope, kind, max(number) AS number FROM numbered GROUP BY scope, kind) AS highest
        WHERE last.scope = highest.scope AND last.value = '' AND last.kind = highest.kind
    )
    SELECT place, number FROM numbered;
END $$;
