-- Statements of experts on a question are read beside those of users, however many these are.
ALTER TABLE memory_statements ADD COLUMN expert BOOLEAN DEFAULT false;  -- an expert gave the feedback
UPDATE memory_statements SET expert = true WHERE feedback_id IN (SELECT id FROM feedback WHERE source = 'expert');
