ALTER TABLE archives ADD COLUMN workloads VARCHAR[];  -- of the events in the file, '' for events of none; null: not read yet
