-- Whether an expert's answer was published. An open request on which enough experts agree, and of which nothing was published,
-- is open again.
ALTER TABLE label_work ADD COLUMN sent BOOLEAN;  -- the answer, or the same one of another expert, was published as feedback; null: not
UPDATE label_work SET sent = true
WHERE state = 'answered' AND request_id IN (SELECT id FROM label_requests WHERE answered_at IS NOT NULL);

-- What people had decided about rows and accounts when the dataset was built last.
ALTER TABLE datasets ADD COLUMN decisions VARCHAR;  -- hash of the decisions of people in force when it was last built; null: unknown, of earlier releases
