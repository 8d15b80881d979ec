-- All models are trained on machines of one's own: the name of a model is `workload@version`, and no tokens are paid for.

CREATE OR REPLACE MACRO version_of(of_workload, of_model) AS CASE
    WHEN starts_with(of_model, of_workload || '@') THEN of_model[length(of_workload) + 2:]
    ELSE 'base'
END;

ALTER TABLE models DROP COLUMN provider_model;
ALTER TABLE runs DROP COLUMN provider_job;
ALTER TABLE runs DROP COLUMN trained_tokens;
ALTER TABLE runs DROP COLUMN input_tokens;
ALTER TABLE runs DROP COLUMN output_tokens;
