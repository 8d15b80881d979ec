-- Ratings count each vote, and how many independent ones they are worth.

ALTER TABLE rating_periods ADD COLUMN effect DOUBLE;        -- design effect: so many votes are worth one; null: of an old count
