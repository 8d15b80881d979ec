-- The identity of a question has all that the model read. The memory reads all feedback anew, and finds its questions by their
-- new keys.
CREATE MACRO question_extras(attributes) AS json_object(
    'functions', attributes -> '$.functions',
    'documents', attributes -> '$.documents',
    'chat_template_kwargs', attributes -> '$.chat_template_kwargs',
    'chat_template', attributes -> '$.chat_template',
    'sealed_instructions', attributes -> '$.sealed_instructions'
);
ALTER TABLE memory_entries ADD COLUMN extras JSON;  -- what else the model read: documents, arguments of the template, the seal of its instructions
DELETE FROM memory_positions;
