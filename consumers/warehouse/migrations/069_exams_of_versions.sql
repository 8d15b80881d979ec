-- An exam counts for the version of the metric that took it; for those from before, it is unknown.
ALTER TABLE exams ADD COLUMN version VARCHAR;  -- changes when the metric's verdicts may change
