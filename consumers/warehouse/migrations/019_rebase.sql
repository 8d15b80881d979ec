-- A run may move a workload to another base model.

ALTER TABLE runs ADD COLUMN kind VARCHAR DEFAULT 'retrain';  -- retrain, or rebase: trained anew on another base model
ALTER TABLE runs ADD COLUMN base_model VARCHAR;              -- of a rebase: the folder of that base model
