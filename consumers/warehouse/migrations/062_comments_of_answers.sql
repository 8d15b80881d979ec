-- The comment of an expert stays with the answer, which may wait for the answers of others. That of a published one is known
-- from feedback.
ALTER TABLE label_work ADD COLUMN comment VARCHAR;  -- of the expert, on the answer
UPDATE label_work SET comment = c.value ->> '$'
FROM label_requests r, feedback c
WHERE r.id = label_work.request_id AND label_work.state = 'answered'
    AND c.interaction_id = r.interaction_id AND c.name = 'comment' AND c.source = 'expert'
    AND c.timestamp = date_trunc('millisecond', label_work.since);
