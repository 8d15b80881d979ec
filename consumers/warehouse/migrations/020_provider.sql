-- A base model may be a provider's, which trains it, serves it, and is paid by the token.

ALTER TABLE models ADD COLUMN provider_model VARCHAR;   -- the provider's name of the version; null: its weights are in its folder
ALTER TABLE runs ADD COLUMN provider_job VARCHAR;       -- id of the fine-tuning job at the provider; null: none, or trained here
ALTER TABLE runs ADD COLUMN trained_tokens BIGINT;      -- that the provider trained on, epochs counted; null: none, or not reported
ALTER TABLE runs ADD COLUMN input_tokens BIGINT;        -- that the provider read in the evaluation
ALTER TABLE runs ADD COLUMN output_tokens BIGINT;       -- that it generated there

-- The version of a workload that answered, by the name of the model in the event: `workload@version`, or what the provider
-- calls it; `base` is any other.
CREATE MACRO version_of(of_workload, of_model) AS CASE
    WHEN starts_with(of_model, of_workload || '@') THEN of_model[length(of_workload) + 2:]
    ELSE coalesce((
        SELECT any_value(version) FROM models WHERE workload = of_workload AND provider_model = of_model
    ), 'base')
END;
