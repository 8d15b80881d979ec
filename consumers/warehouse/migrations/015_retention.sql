-- What retention removed: the row stays and says when, so that lineage and promotions still name what there was.

ALTER TABLE models ADD COLUMN removed_at TIMESTAMP;     -- when retention deleted its folder and its evaluations; null: they are there
ALTER TABLE datasets ADD COLUMN removed_at TIMESTAMP;   -- when retention deleted its folder and its rows in dataset_rows; null: they are there
