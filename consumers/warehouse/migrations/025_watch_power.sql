-- What a watch can find at the present rate of votes.

ALTER TABLE watch_checks ADD COLUMN votes_per_day DOUBLE;       -- votes a day, by who gave them; null: not counted by the version that looked
ALTER TABLE watch_checks ADD COLUMN seconds_to_find DOUBLE;     -- how long after the promotion a fall of 20 points shows; null: not within a year
