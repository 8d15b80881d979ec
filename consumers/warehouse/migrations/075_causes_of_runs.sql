-- What asked for a run decides what its end means to the policy; a sentence for people is no place to look it up.
ALTER TABLE runs ADD COLUMN cause VARCHAR;  -- policy, person, or erasure (nothing else asked for it); null: policy

UPDATE runs SET cause = CASE
    WHEN starts_with(reasons ->> '$[0]', 'asked for by ') THEN 'person'
    WHEN json_array_length(reasons) = 1 AND contains(reasons ->> '$[0]', 'learned rows that were erased on') THEN 'erasure'
    ELSE 'policy'
END;
