-- What votes are grouped by: the conversation and the model of the answer that they are about, and who asked.

ALTER TABLE judgements ADD COLUMN conversation VARCHAR;     -- of the interaction; its id, where it names none
ALTER TABLE judgements ADD COLUMN model VARCHAR;            -- that answered
ALTER TABLE judgements ADD COLUMN asker_id VARCHAR;         -- keyed hash of who asked

UPDATE judgements SET conversation = coalesce(conversation_id, id), model = answer.model, asker_id = answer.user_id
FROM interactions AS answer
WHERE id = interaction_id AND answer.timestamp = answered_at AND answer.received_at = answer_received_at
  AND answer.workload = judgements.workload;
