-- A pair in shadow that nothing could judge is judged again once there is newer feedback on it, and not at each look.
ALTER TABLE shadow_scores ADD COLUMN feedback_until TIMESTAMP;  -- when the latest feedback came that was known; null: none, or unknown
