-- A base model may be a provider's, which trains it, serves it, and is paid by the token.

ALTER TABLE models ADD COLUMN provider_model VARCHAR;   -- the provider's name of the version; null: its weights are in its folder
ALTER TABLE runs ADD COLUMN provider_job VARCHAR;       -- id of the fine-tuning job at the provider; null: none, or trained here
ALTER TABLE runs ADD COLUMN trained_tokens BIGINT;      -- that the provider trained on, epochs counted; null: none, or not reported
ALTER TABLE runs ADD COLUMN input_tokens BIGINT;        -- that the provider read in the evaluation
ALTER TABLE runs ADD COLUMN output_tokens BIGINT;       -- that it generated there
