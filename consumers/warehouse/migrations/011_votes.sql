-- Who called an answer helpful or invented, or neither: a row for each time that somebody did. Whoever corrects an answer
-- and does not say whether it was helpful found that it was not.
CREATE VIEW votes AS
SELECT id, timestamp, interaction_id, name, value::VARCHAR = 'true' AS value, source, user_id
FROM feedback
WHERE name IN ('helpful', 'hallucination') AND value::VARCHAR IN ('true', 'false')
UNION ALL
SELECT id, timestamp, interaction_id, 'helpful', false, source, user_id
FROM feedback AS corrections
WHERE name = 'correction' AND NOT EXISTS (
    FROM feedback
    WHERE name = 'helpful' AND value::VARCHAR IN ('true', 'false')
      AND interaction_id = corrections.interaction_id AND source = corrections.source
      AND user_id IS NOT DISTINCT FROM corrections.user_id
);
